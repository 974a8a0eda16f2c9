package ledger

import (
	"slices"
	"testing"
)

// FuzzTimes: what the store keeps in one column comes out of it.
func FuzzTimes(f *testing.F) {
	f.Add("")
	f.Add("1705412600 1705412601 ")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseTimes(text)
		if err != nil {
			return
		}
		if again, err := parseTimes(formatTimes(list)); err != nil || !slices.Equal(list, again) {
			t.Errorf("%v became %v: %v", list, again, err)
		}
	})
}
