package registry

import (
	"os"
	"testing"

	"omiappreg.org/keyrotation/internal/testenv"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(replicaEnv); text != "" {
		os.Exit(replicaMain(text))
	}
	os.Exit(testenv.Main(m))
}
