package schema_test

import (
	"fmt"
	"io/fs"
	"log"
	"strings"

	"omiappreg.org/keyrotation/schema"
)

// The statements that the registry's database gets first, for an operator who reviews them.
func ExampleRegistry() {
	statements, err := fs.ReadFile(schema.Registry(), "postgres/00001_apps.sql")
	if err != nil {
		log.Fatal(err)
	}
	for line := range strings.Lines(string(statements)) {
		if strings.HasPrefix(line, "CREATE TABLE") {
			fmt.Print(line)
		}
	}
	// Output: CREATE TABLE IF NOT EXISTS apps (
}
