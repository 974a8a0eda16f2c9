package testenv

import (
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/localserver"
)

// Hostile returns settings of PostgreSQL that a role, a database or a server may have for each
// session, and that change the results that a program gets.
func Hostile() map[string]string {
	return map[string]string{
		"bytea_output": "escape", "DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard", "TimeZone": "Asia/Kathmandu",
		"search_path": "pg_catalog", "standard_conforming_strings": "off", "array_nulls": "off", "client_encoding": "LATIN1",
		"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on",
		"lock_timeout": "1ms", "statement_timeout": "300ms", "idle_in_transaction_session_timeout": "50ms", "idle_session_timeout": "1500ms",
		"extra_float_digits": "-15", "escape_string_warning": "on", "backslash_quote": "on", "plan_cache_mode": "force_custom_plan",
		"enable_seqscan": "on", "transform_null_equals": "on", "default_toast_compression": "pglz", "lc_messages": "C",
	}
}

// HostileURLs returns the URLs of databases whose owner has the settings of [Hostile]. The keys say
// how a database is reached: in each mode of the driver that leaves nothing in a session, directly
// and behind PgBouncer in transaction mode.
func HostileURLs(t testing.TB) map[string]string {
	t.Helper()
	urls := map[string]string{}
	for _, mode := range []string{"", "exec", "simple_protocol"} {
		direct := Owned(t, Hostile())
		urls["direct "+mode] = withMode(direct, mode)
		urls["pooled "+mode] = withMode(Pooled(t, Owned(t, Hostile()), 1), mode)
	}
	return urls
}

func withMode(text, mode string) string {
	if mode == "" {
		return text
	}
	return text + "&default_query_exec_mode=" + mode
}

// Owned returns the URL of an empty PostgreSQL database, with its owner as the user. The owner is a
// role that has these settings, and no other rights.
func Owned(t testing.TB, settings map[string]string) string {
	t.Helper()
	database, err := url.Parse(Database(t, Postgres))
	if err != nil {
		t.Fatal(err)
	}
	name, password := "omi_role_"+strings.ToLower(rand.Text()), rand.Text()
	AsAdmin(t, database.String(), fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", name, password))
	t.Cleanup(func() { // before the database is dropped
		AsAdmin(t, database.String(), "REASSIGN OWNED BY "+name+" TO CURRENT_USER; DROP OWNED BY "+name+"; DROP ROLE "+name)
	})
	AsAdmin(t, database.String(), fmt.Sprintf("ALTER DATABASE %s OWNER TO %s", strings.TrimPrefix(database.Path, "/"), name))
	for setting, value := range settings {
		AsAdmin(t, database.String(), fmt.Sprintf("ALTER ROLE %s SET %s = %s", name, setting, literal(setting, value)))
	}
	owned := *database
	owned.User = url.UserPassword(name, password)
	query := owned.Query()
	query.Set("sslmode", "disable")
	owned.RawQuery = query.Encode()
	return owned.String()
}

// literal is the value of a setting in SQL. Some are lists, which have no quotes.
func literal(setting, value string) string {
	if setting == "DateStyle" || setting == "search_path" {
		return value
	}
	return "'" + value + "'"
}

// AsAdmin runs statements on a database as the superuser of the server. The URL may name another
// role.
func AsAdmin(t testing.TB, database, statements string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := servers.url(Postgres)
	if err != nil {
		t.Fatal(err)
	}
	whole := *admin
	whole.Path = u.Path
	if err := execute(&whole, statements); err != nil {
		t.Fatal(err)
	}
}

// Pooled returns the URL of a database behind PgBouncer in transaction mode. PgBouncer uses this
// many sessions with the server.
func Pooled(t testing.TB, database string, sessions int) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	pooler, err := localserver.StartPgBouncer(sessions, u)
	if err != nil {
		Missing(t, PgBouncer, err)
	}
	t.Cleanup(pooler.Stop)
	return pooler.URL().String()
}
