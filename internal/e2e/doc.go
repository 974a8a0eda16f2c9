// Package e2e tests the programs as people and supervisors meet them: the real binaries, over TCP, with a broker and
// databases of their own. It has tests only.
//
//   - TestScripts runs the scripts in testdata/script; script_test.go says what they can do beside testscript's own
//     commands.
//   - TestKillNine kills the processes while keys rotate, and then counts: nothing is lost, nothing happens twice.
package e2e
