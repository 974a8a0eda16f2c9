package process

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzNATSURL: no --nats-url makes us panic, and none is printed with its password, whether it is
// accepted or not.
func FuzzNATSURL(f *testing.F) {
	for _, text := range []string{
		"nats://127.0.0.1:4222", "127.0.0.1", "nats://a:1,tls://b:2", "nats://user:s3cr3t-word@h:4222", "user:s3cr3t-word@h", "nats://u:s3cr3t-word@h:port",
		"nats://u:%zzs3cr3t-word@h", "http://u:s3cr3t-word@h", "nats://u:s3cr3t-word/x@h", "nats://[::1]:4222", "nats://::1", "nats://s3cr3t-word@h", ",", "\x00",
		"//u:s3cr3t-word@h", "nats:/u:s3cr3t-word@h", "nats:u:s3cr3t-word@h", "nats://h/?u:s3cr3t-word@h",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n := NATS{URL: text}
		shown := n.redacted()
		err := n.Check()
		if err != nil {
			shown += err.Error()
			if ExitCode(err) != ExitUsage {
				t.Errorf("exit code %d: %v", ExitCode(err), err)
			}
		}
		for server := range strings.SplitSeq(text, ",") {
			u, parseErr := url.Parse(strings.TrimSpace(server))
			if parseErr != nil {
				continue
			}
			password, _ := u.User.Password()
			if len(password) >= 8 && strings.Contains(shown, password) && !strings.Contains(strings.Replace(text, password, "", 1), password) {
				t.Errorf("%q is shown as %q", text, shown)
			}
		}
		if strings.Contains(shown, ":s3cr3t-word@") {
			t.Errorf("%q is shown as %q", text, shown)
		}
	})
}
