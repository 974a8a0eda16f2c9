package e2e_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/testenv"
)

// registryPrivileges is what the registry's serving role may do with each table. A new table must be
// listed here, and in deploy/sql/registry.sql if the role may not write it.
func registryPrivileges() map[string]string {
	const all, grow, read = "SELECT INSERT UPDATE DELETE", "SELECT INSERT", "SELECT"
	return map[string]string{
		"apps": "SELECT INSERT UPDATE", "app_use": "SELECT INSERT UPDATE", "reserved_keys": grow, "history": grow, "services": "SELECT INSERT UPDATE", "outbox": all,
		"dead_letters": all, "stream_positions": all, "policy": "SELECT INSERT UPDATE",
		"database_owner": read, "goose_db_version": read, "goose_lock": read,
	}
}

// roles are the databases of deploy/sql on one server.
type roles struct {
	t         *testing.T
	engine    string
	databases map[string]string // URLs for the administrator, by their names in deploy/sql
	admin     string            // that of the registry's
	renamed   *strings.Replacer // the names of deploy/sql, which others may use on this server
	prefix    string
	password  string
}

// TestRoles sets up the databases as deploy/sql says, runs the registry with them, and tries what
// is not for its roles.
func TestRoles(t *testing.T) {
	t.Parallel()
	useSources(t)
	for _, engine := range []string{testenv.Postgres, testenv.Cockroach} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := newRoles(t, engine)
			r.testRegistry()
			r.testPrivileges()
			r.testForbidden()
		})
	}
}

func newRoles(t *testing.T, engine string) *roles {
	t.Helper()
	r := &roles{
		t: t, engine: engine, databases: map[string]string{}, password: rand.Text(), prefix: "omi" + strings.ToLower(rand.Text()) + "_",
	}
	t.Cleanup(r.forget) // when the databases are gone
	var rename []string
	for _, name := range []string{"registry", "authsub", "billingsub"} {
		r.databases[name] = testenv.Database(t, engine)
		_, database, _ := strings.Cut(pathOf(t, r.databases[name]), "/")
		rename = append(rename, "DATABASE "+name, "DATABASE "+database)
		// PostgreSQL has no such grant by default, since version 15.
		r.must(r.databases[name], "GRANT CREATE ON SCHEMA public TO PUBLIC")
	}
	r.renamed = strings.NewReplacer(append(rename, "omi_", r.prefix)...)
	r.admin = r.databases["registry"]
	r.run("roles.sql")
	for _, role := range r.names() {
		err := r.try(r.admin, "ALTER ROLE "+role+" PASSWORD '"+r.password+"'")
		if err != nil && engine == testenv.Postgres { // a CockroachDB without TLS has no passwords
			t.Fatal(err)
		}
	}
	if said := r.omiRegistry(2, "omi_registry", "migrate"); !strings.Contains(said, "first do that as the role that owns it") {
		t.Errorf("it says %s", said)
	}
	if engine == testenv.Postgres { // as on a hardened server
		r.must(r.admin, r.renamed.Replace("ALTER DEFAULT PRIVILEGES FOR ROLE omi_registry_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"))
	}
	r.omiRegistry(0, "omi_registry_owner", "migrate")
	r.run("registry.sql")
	r.run("registry.sql") // as after an upgrade
	return r
}

// forget drops the roles, which belong to the whole server.
func (r *roles) forget() {
	if r.admin == "" {
		return // skipped
	}
	server, err := url.Parse(r.admin)
	if err != nil {
		r.t.Fatal(err)
	}
	server.Path = "/postgres"
	for _, role := range r.names() {
		if err := r.try(server.String(), "DROP ROLE "+role); err != nil {
			r.t.Errorf("drop %s: %v", role, err)
		}
	}
}

func pathOf(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	return u.Path
}

func (r *roles) names() (names []string) {
	for _, name := range []string{"omi_registry_owner", "omi_registry", "omi_registry_reader", "omi_authsub", "omi_billingsub"} {
		names = append(names, r.renamed.Replace(name))
	}
	return names
}

// script is a file of deploy/sql without its comments.
func (r *roles) script(name string) string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "sql", name))
	if err != nil {
		r.t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		statement, _, _ := strings.Cut(line, "--")
		b.WriteString(strings.TrimSpace(statement) + "\n")
	}
	return r.renamed.Replace(b.String())
}

// run runs a file of deploy/sql as psql does: one statement after the other, each in the database
// that the last \connect names.
func (r *roles) run(name string) {
	r.t.Helper()
	first, rest, _ := strings.Cut(r.script(name), `\connect `)
	parts := []string{"registry\n" + first}
	if rest != "" {
		parts = append(parts, strings.Split(rest, `\connect `)...)
	}
	for _, part := range parts {
		database, statements, _ := strings.Cut(part, "\n")
		for statement := range strings.SplitSeq(statements, ";") {
			if strings.Contains(statement, "CREATE DATABASE") {
				continue // testenv has made it
			}
			r.must(r.databases[database], statement)
		}
	}
}

// as is the URL of a database for a role of deploy/sql.
func (r *roles) as(role, database string) string {
	r.t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		r.t.Fatal(err)
	}
	u.User = url.UserPassword(r.renamed.Replace(role), r.password)
	query := u.Query()
	for _, administrators := range []string{"sslcert", "sslkey"} {
		query.Del(administrators)
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// try runs statements on a connection of their own.
func (r *roles) try(database, statements string) error {
	ctx := context.WithoutCancel(r.t.Context())
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statements)
	return err
}

func (r *roles) must(database, statements string) {
	r.t.Helper()
	if err := r.try(database, statements); err != nil {
		r.t.Fatalf("%s: %v", statements, err)
	}
}

// omiRegistry runs the program as a role, with an exit code that must be this, and returns all that
// it says.
func (r *roles) omiRegistry(code int, role string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command(filepath.Join(binaries, "omi-registry"), args...)
	cmd.Env = []string{"OMI_DATABASE_URL=" + r.as(role, r.admin)}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		r.t.Fatalf("%s: omi-registry %v: %v, want exit code %d\n%s", role, args, err, code, out)
	}
	return string(out)
}

// testRegistry: the registry serves with what its role may do.
func (r *roles) testRegistry() {
	d := newDeployment(r.t, r.as("omi_registry", r.admin))
	run := func(args ...string) {
		r.t.Helper()
		cmd := exec.Command(filepath.Join(binaries, "omi"), args...)
		cmd.Dir = d.folder
		cmd.Env = []string{
			"HOME=" + d.folder, "OMI_NATS_URL=" + d.js.Conn().ConnectedUrl(), "OMI_APP_ID=" + d.app.String(), "OMI_SERVICE_ID=cms",
			"OMI_TRUST=" + d.registryKey().String(),
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			r.t.Fatalf("omi %v: %v\n%s", args, err, out)
		}
	}
	if err := keyfile.Create(filepath.Join(d.folder, "master.pem"), d.master); err != nil {
		r.t.Fatal(err)
	}
	run("bind", "--master-key", "master.pem", "--key", "cms.pem")
	run("rotate", "--key", "cms.pem", "--wait", "propagated")
	run("reset", "--master-key", "master.pem", "--key", "cms.pem")
	run("history")
	next := events.GenerateSigningKey()
	r.omiRegistry(0, "omi_registry", "app", "replace-master", "--app-id", d.app.String(), "--master-key", next.Public().String())
	if err := keyfile.Create(filepath.Join(d.folder, "next.pem"), next); err != nil {
		r.t.Fatal(err)
	}
	run("revoke", "--master-key", "next.pem")
	d.settle()
	r.omiRegistry(0, "omi_registry_reader", "check", "--trust", d.registryKey().String())
	r.omiRegistry(0, "omi_registry_reader", "app", "list")
	r.omiRegistry(0, "omi_registry_reader", "app", "show", "--app-id", d.app.String())
	r.omiRegistry(0, "omi_registry_reader", "deadletters", "list")
	r.omiRegistry(0, "omi_registry", "deadletters", "retry", "--all")
}

// testPrivileges holds what the roles may do against what was thought of.
func (r *roles) testPrivileges() {
	conn, err := pgx.Connect(r.t.Context(), r.admin)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close(r.t.Context()) }()
	rows, err := conn.Query(r.t.Context(), "SELECT table_name::TEXT FROM information_schema.tables WHERE table_schema = 'public'")
	if err != nil {
		r.t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.t.Fatal(err)
	}
	var sequence string
	if err := conn.QueryRow(r.t.Context(), "SELECT pg_get_serial_sequence('services', 'id')").Scan(&sequence); err != nil {
		r.t.Fatal(err)
	}
	for role, want := range map[string]string{"omi_registry": "USAGE", "omi_registry_reader": ""} {
		if got := r.may(conn, "sequence", role, sequence, "USAGE", "SELECT", "UPDATE"); got != want {
			r.t.Errorf("%s may %q with %s, want %q", role, got, sequence, want)
		}
	}
	privileges := []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
	if r.engine != testenv.Cockroach { // which has no others, and answers for one that it has
		privileges = append(privileges, "TRUNCATE", "REFERENCES", "TRIGGER")
	}
	want, serving := registryPrivileges(), map[string]string{}
	for _, table := range tables {
		may := func(role string) string { return r.may(conn, "table", role, table, privileges...) }
		serving[table] = may("omi_registry")
		if got := may("omi_registry_reader"); got != "SELECT" {
			r.t.Errorf("%s: the reader may %s", table, got)
		}
		if got := may("omi_authsub"); got != "" {
			r.t.Errorf("%s: Auth may %s", table, got)
		}
		if _, ok := want[table]; !ok {
			r.t.Errorf("the table %s is new: say in deploy/sql/registry.sql and in this test what the registry may do with it", table)
		}
	}
	for table := range want {
		if !slices.Contains(tables, table) {
			delete(want, table)
		}
	}
	if diff := cmp.Diff(want, serving); diff != "" {
		r.t.Errorf("privileges of the registry (-want +got):\n%s", diff)
	}
}

// may returns those of the privileges that a role has on a table or a sequence.
func (r *roles) may(conn *pgx.Conn, kind, role, name string, privileges ...string) string {
	r.t.Helper()
	var may []string
	for _, privilege := range privileges {
		var has bool
		// CockroachDB has a function for each combination of types, and wants to know which is
		// meant.
		query := "SELECT has_" + kind + "_privilege($1::TEXT, $2::TEXT, $3::TEXT)"
		if err := conn.QueryRow(r.t.Context(), query, r.renamed.Replace(role), name, privilege).Scan(&has); err != nil {
			r.t.Fatalf("%s on %s: %v", privilege, name, err)
		}
		if has {
			may = append(may, privilege)
		}
	}
	return strings.Join(may, " ")
}

// testForbidden tries what the roles must not do.
func (r *roles) testForbidden() {
	r.must(r.as("omi_registry_owner", r.admin), "CREATE TABLE later (n BIGINT PRIMARY KEY)")
	r.must(r.as("omi_registry", r.admin), "INSERT INTO later VALUES (1)") // covered at once
	r.must(r.as("omi_registry_reader", r.admin), "SELECT * FROM later")
	for role, statements := range map[string][]string{
		"omi_registry": {
			"UPDATE history SET sequence = 9", "DELETE FROM history", "TRUNCATE history", "DROP TABLE history", "ALTER TABLE history DROP COLUMN receipt",
			"DELETE FROM apps", "UPDATE reserved_keys SET app_id = ''", "DELETE FROM reserved_keys", "DELETE FROM services", "CREATE TABLE mine (n BIGINT)",
			"DELETE FROM goose_db_version", "UPDATE database_owner SET owner = 'auth'", "DROP TABLE outbox",
		},
		"omi_registry_reader": {
			"INSERT INTO later VALUES (2)", "UPDATE services SET sequence = 9", "DELETE FROM outbox", "CREATE TABLE mine (n BIGINT)", "TRUNCATE outbox",
		},
	} {
		r.refused(role, r.admin, statements...)
	}
	owners := map[string]string{"registry": "omi_registry_owner", "authsub": "omi_authsub", "billingsub": "omi_billingsub"}
	for database, owner := range owners {
		r.must(r.as(owner, r.databases[database]), "CREATE TABLE own (n BIGINT PRIMARY KEY)")
		for _, other := range owners {
			if other != owner {
				r.refused(other, r.databases[database], "SELECT n FROM own", "CREATE TABLE mine (n BIGINT)")
			}
		}
	}
}

// refused tries statements that a role has no right to.
func (r *roles) refused(role, database string, statements ...string) {
	r.t.Helper()
	for _, statement := range statements {
		err := r.try(r.as(role, database), statement)
		if answer := (*pgconn.PgError)(nil); !errors.As(err, &answer) || answer.Code != "42501" {
			r.t.Errorf("%s: %s: got %v, want insufficient_privilege", role, statement, err)
		}
	}
}
