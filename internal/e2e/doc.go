// Package e2e tests the programs as people and supervisors meet them: the real binaries, over TCP,
// with a broker and databases of their own. It has tests only.
//
//   - TestScripts runs the scripts in testdata/script. script_test.go says which commands they have
//     besides testscript's own.
//   - TestKillNine kills the processes while keys rotate, and then counts: nothing is lost, and
//     nothing happens twice.
//   - TestChaos breaks everything else too, and counts the same way: several processes of each kind,
//     a cluster of three broker nodes, databases, the connections between any two, disks and clocks.
//
// TestChaos runs for as long as you like. -artifacts keeps what the processes said, and their
// databases, in DIR:
//
//	go test ./internal/e2e -run Chaos -chaos.duration=1h -timeout 0 -v -artifacts -outputdir DIR
//
// -chaos.engines=sqlite,postgres,cockroach names the databases. For cockroach the program of that
// name must be on PATH: the test starts a cluster of three nodes with it, kills nodes, and takes
// the quorum away. An engine that is named and not installed fails the test.
//
// OMI_CHAOS_DURATION sets the duration for go test ./..., whose other packages don't know the flag.
package e2e
