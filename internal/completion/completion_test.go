package completion_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/internal/completion"
)

// grammar has one of everything that the programs' grammars have.
type grammar struct {
	Verbose bool `help:"Say more."`

	Serve struct {
		Key   string   `placeholder:"FILE" help:"The key."`
		Data  string   `placeholder:"DIR" short:"d" help:"The folder."`
		Trust []string `placeholder:"ed25519:…" help:"A key to trust."`
		Debug bool     `hidden:"" help:"Nobody's business."`
	} `cmd:"" default:"withargs" help:"Serve."`
	App struct {
		Add struct {
			ID string `help:"The app's name."`
		} `cmd:"" aliases:"new" help:"Add an app."`
		List struct{} `cmd:"" help:"List the apps."`
	} `cmd:"" help:"The apps."`
	Convert struct {
		Format *string `enum:"pem,jwk" help:"The form."`
		Any    string  `enum:",a,b" default:"" help:"One or none."`
		Secret bool    `hidden:"" help:"Nobody's business."`
		Level  int     `type:"counter" help:"More each time."`
		Kind   string  `arg:"" enum:"public,private" help:"Which half."`
		From   string  `arg:"" placeholder:"FILE" help:"The file."`
	} `cmd:"" help:"Convert."`
	Hidden struct{} `cmd:"" hidden:"" help:"Nobody's business."`

	Completion completion.Command `cmd:"" help:"Complete."`
}

func parser(t rapid.TB, out *bytes.Buffer) *kong.Kong {
	p, err := kong.New(&grammar{}, kong.Name("some-program"), kong.Writers(out, out))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	const always = " --help --verbose"
	for line, want := range map[string]string{
		"":                            "words serve app convert completion",
		"se":                          "words serve",
		"hid":                         "words",
		"nothing ":                    "words serve app convert completion",
		"--":                          "words" + always + " --key --data --trust", // of the default command
		"--k":                         "words --key",
		"--key ":                      "files",
		"--key some.pe":               "files",
		"--key=some.pe":               "files",
		"--key some.pem --k":          "words",
		"--key=some.pem --k":          "words",
		"--trust a --tr":              "words --trust", // may be given again
		"--trust ":                    "words",
		"--data ":                     "folders",
		"-d ":                         "folders",
		"-d x ":                       "words serve app convert completion",
		"serve ":                      "words" + always + " --key --data --trust",
		"app ":                        "words add list",
		"app a":                       "words add",
		"app new --":                  "words" + always + " --id",
		"app add --id ":               "words",
		"app add --id list ":          "words" + always,
		"--verbose app ":              "words add list",
		"--verbose --v":               "words",
		"--bogus app ":                "words add list",
		"convert ":                    "words public private",
		"convert pu":                  "words public",
		"convert public ":             "files",
		"convert --format jwk public": "words public",
		"convert --format ":           "words pem jwk",
		"convert --format=j":          "words --format=jwk",
		"convert --any ":              "words a b",
		"convert --bogus=":            "words",
		"convert --s":                 "words",
		"convert --level ":            "words public private",
		"convert public a.pem ":       "words" + always + " --format --any --level",
		"convert -- --format ":        "files",
		"convert -- ":                 "words public private",
		"convert - ":                  "files",
		"-- --":                       "words",
		"completion ":                 "words bash zsh fish",
		"completion bash -- a ":       "words",
	} {
		kind, candidates := completion.Answer(parser(t, &bytes.Buffer{}).Model, strings.Split(line, " "))
		words := []string{string(kind)}
		for _, c := range candidates {
			words = append(words, c.Word)
		}
		if got := strings.Join(words, " "); got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}

// TestAnswerGoesOn: whatever words came before, the answer continues the word that was begun, and
// comes to an end.
func TestAnswerGoesOn(t *testing.T) {
	t.Parallel()
	words := rapid.SliceOf(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{
		"serve", "app", "new", "convert", "public", "--", "-", "--key", "--key=", "--format", "--format=", "-d", "--level", "completion", "",
	})))
	rapid.Check(t, func(t *rapid.T) {
		line := words.Draw(t, "words")
		kind, candidates := completion.Answer(parser(t, &bytes.Buffer{}).Model, line)
		if kind != completion.Words && len(candidates) > 0 {
			t.Fatalf("%s, and words: %v", kind, candidates)
		}
		for _, c := range candidates {
			if len(line) > 0 && !strings.HasPrefix(c.Word, line[len(line)-1]) {
				t.Fatalf("%q does not go on with %q", c.Word, line[len(line)-1])
			}
		}
	})
}

func TestCommand(t *testing.T) {
	t.Parallel()
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		ctx, err := parser(t, &out).Parse(args)
		if err == nil {
			err = ctx.Run()
		}
		return out.String(), err
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		got, err := run("completion", shell)
		if err != nil || !strings.Contains(got, "some-program completion "+shell+" -- ") || !strings.Contains(got, "_some_program") ||
			strings.Contains(got, "PROGRAM") || strings.Contains(got, "FUNCTION") {
			t.Errorf("%s: %v\n%s", shell, err, got)
		}
		got, err = run("completion", shell, "--", "app", "--verbose", "")
		if diff := cmp.Diff("words\nadd\tAdd an app.\nlist\tList the apps.\n", got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", shell, err, diff)
		}
	}
	if got, err := run("completion", "csh"); err == nil {
		t.Errorf("a script for csh: %s", got)
	}
}
