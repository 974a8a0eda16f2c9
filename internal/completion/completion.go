// Package completion gives a kong program the command `completion`. It prints a script for bash,
// zsh or fish, which asks the program itself, at each Tab, what may stand there. So the scripts are
// short, and match the installed version of the program.
package completion

import (
	"embed"
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

//go:embed scripts
var scripts embed.FS

// Command is a command for a grammar: Completion completion.Command `cmd:"" help:"…"`.
type Command struct {
	Shell string   `arg:"" enum:"bash,zsh,fish" help:"The shell: bash, zsh or fish."`
	Words []string `arg:"" optional:"" help:"The script's question: the words of a command line, after --."`
}

// Run prints the script of a shell, or the answer to that script's question: a line with a [Kind],
// and then the words, each with a tab and its help.
func (c *Command) Run(ctx *kong.Context) error {
	if len(c.Words) > 0 {
		kind, candidates := Answer(ctx.Model, c.Words)
		fmt.Fprintln(ctx.Stdout, kind)
		for _, candidate := range candidates {
			fmt.Fprintf(ctx.Stdout, "%s\t%s\n", candidate.Word, strings.Join(strings.Fields(candidate.Help), " "))
		}
		return nil
	}
	text, err := scripts.ReadFile("scripts/" + c.Shell)
	if err != nil {
		return fmt.Errorf("the script for %s: %w", c.Shell, err)
	}
	program := ctx.Model.Name
	function := "_" + strings.ReplaceAll(program, "-", "_")
	if _, err := fmt.Fprint(ctx.Stdout, strings.NewReplacer("FUNCTION", function, "PROGRAM", program).Replace(string(text))); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
