// Package e2e tests the programs as people and supervisors meet them: the real binaries, over TCP, with a broker and
// databases of their own. It has tests only.
//
//   - TestScripts runs the scripts in testdata/script; script_test.go says what they can do beside testscript's own
//     commands.
//   - TestKillNine kills the processes while keys rotate, and then counts: nothing is lost, nothing happens twice.
//   - TestChaos breaks all the rest too, and counts likewise: several processes of each kind, a cluster of three broker
//     nodes, databases, the ways between any two, disks and clocks.
//
// It can go on for as long as one likes; -artifacts keeps what the processes said, and their databases, in DIR:
//
//	go test ./internal/e2e -run Chaos -chaos.duration=1h -timeout 0 -v -artifacts -outputdir DIR
//
// OMI_CHAOS_DURATION is the same for go test ./..., whose other packages don't know the flag.
package e2e
