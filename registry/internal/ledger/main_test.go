package ledger

import (
	"os"
	"testing"

	"omiappreg.org/keyrotation/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }
