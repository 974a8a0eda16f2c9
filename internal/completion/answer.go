package completion

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Kind says what may stand at a place.
type Kind string

// The kinds. The shell itself finds files and folders.
const (
	Words   Kind = "words"
	Files   Kind = "files"
	Folders Kind = "folders"
)

// Candidate is a word that may stand at a place, and its meaning.
type Candidate struct{ Word, Help string }

// Answer says what the last of the words after the program's name may become. The value of a flag
// is a file if its placeholder begins with FILE, a folder if it is DIR, and otherwise only what its
// enum lists: IDs can't be guessed.
func Answer(app *kong.Application, words []string) (Kind, []Candidate) {
	if len(words) == 0 {
		words = []string{""}
	}
	p := place{node: app.Node, given: map[string]bool{}}
	last := len(words) - 1
	for _, word := range words[:last] {
		p.pass(word)
	}
	return p.complete(words[last])
}

// place is the place in the grammar to which the words so far have led.
type place struct {
	node      *kong.Node
	given     map[string]bool // flags, by name
	flag      *kong.Flag      // the flag whose value is next
	arguments int             // seen
	noFlags   bool            // after --
}

// pass goes on past a word. It ignores a word that the grammar does not know: the program will say
// so.
func (p *place) pass(word string) {
	switch {
	case p.flag != nil:
		p.flag = nil
	case p.noFlags || word == "-" || !strings.HasPrefix(word, "-"):
		if child := p.child(word); child != nil {
			p.node = child
		} else {
			p.arguments++
		}
	case word == "--":
		p.noFlags = true
	default:
		name, _, hasValue := strings.Cut(word, "=")
		flag := p.find(name)
		if flag == nil {
			return
		}
		p.given[flag.Name] = true
		if !hasValue && !flag.IsBool() && !flag.IsCounter() {
			p.flag = flag
		}
	}
}

func (p *place) complete(word string) (Kind, []Candidate) {
	if p.flag != nil {
		return values(p.flag.Value, p.flag.PlaceHolder, word, "")
	}
	if !p.noFlags && strings.HasPrefix(word, "-") {
		if name, value, hasValue := strings.Cut(word, "="); !hasValue {
			return Words, p.flags(word)
		} else if flag := p.find(name); flag != nil {
			return values(flag.Value, flag.PlaceHolder, value, name+"=")
		}
		return Words, nil
	}
	var found []Candidate
	for _, child := range p.node.Children {
		if !child.Hidden && strings.HasPrefix(child.Name, word) {
			found = append(found, Candidate{child.Name, child.Help})
		}
	}
	if p.arguments < len(p.node.Positional) {
		argument := p.node.Positional[p.arguments]
		kind, more := values(argument, argument.Tag.PlaceHolder, word, "")
		if kind != Words {
			return kind, nil
		}
		found = append(found, more...)
	}
	if len(found) == 0 && word == "" && !p.noFlags {
		found = p.flags(word)
	}
	return Words, found
}

// values returns what a flag or an argument may be. The text before the value goes in front of each
// word.
func values(v *kong.Value, placeholder, begun, before string) (Kind, []Candidate) {
	switch {
	case strings.HasPrefix(placeholder, "FILE"):
		return Files, nil
	case placeholder == "DIR":
		return Folders, nil
	case v.Enum == "":
		return Words, nil
	}
	var found []Candidate
	for _, value := range v.EnumSlice() {
		if value != "" && strings.HasPrefix(value, begun) {
			found = append(found, Candidate{Word: before + value})
		}
	}
	return Words, found
}

// child finds a command by its name or an alias.
func (p *place) child(word string) *kong.Node {
	for _, child := range p.node.Children {
		if child.Name == word || slices.Contains(child.Aliases, word) {
			return child
		}
	}
	return nil
}

// visible returns the flags that may stand here: those of the command, or of the default one of its
// commands, and of the commands around it.
func (p *place) visible() []*kong.Flag {
	node := p.node
	if node.DefaultCmd != nil {
		node = node.DefaultCmd
	}
	return slices.Concat(node.AllFlags(true)...)
}

func (p *place) find(written string) *kong.Flag {
	for _, flag := range p.visible() {
		if written == "--"+flag.Name || written == "-"+string(flag.Short) {
			return flag
		}
	}
	return nil
}

// flags returns the flags that begin like this and may be given, or given again.
func (p *place) flags(begun string) []Candidate {
	var found []Candidate
	for _, flag := range p.visible() {
		if word := "--" + flag.Name; strings.HasPrefix(word, begun) && (!p.given[flag.Name] || flag.IsCumulative()) {
			found = append(found, Candidate{word, flag.Help})
		}
	}
	return found
}
