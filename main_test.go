package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

var (
	server  = os.Getenv("DATABASE_URL") // PostgreSQL, as its superuser sees it
	prefix  = "test_" + strings.ToLower(rand.Text()) + "_"
	admin   *pgxpool.Pool // there
	product *service      // what most tests ask, each about patients of its own
	records string        // its database, as the owner sees it
	served  string        // the same with the role that schema.sql makes for the service
	owner   *pgxpool.Pool // there, a second writer
	always  = context.Background()
	ending  sync.Mutex
)

// TestMain runs the tests, or the program itself where a test wants it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_PROGRAM") != "" {
		main()
		os.Exit(0)
	}
	flag.Set("test.parallel", "4") // most of them wait for PostgreSQL
	os.Exit(testAll(m))
}

// testAll runs the tests on a server of their own, or in databases of their own on the server of DATABASE_URL.
func testAll(m *testing.M) (code int) {
	time.Local = time.FixedZone("there", 13*60*60) // which no answer may show
	interrupted, _ := signal.NotifyContext(always, os.Interrupt, syscall.SIGTERM)
	cleanUp := dropDatabases
	if server == "" {
		throwaway, err := startPostgres()
		if err != nil {
			fmt.Fprintln(os.Stderr, "start a PostgreSQL for the tests:", err)
			return 1
		}
		server, cleanUp = throwaway.databaseURL("postgres"), throwaway.stop
	}
	cleanUp = sync.OnceFunc(cleanUp)
	defer cleanUp()
	go func() { <-interrupted.Done(); ending.Lock(); cleanUp(); os.Exit(1) }()

	admin = must(pgxpool.New(always, server))
	must(0, loadSchemaAndSeed(newDatabase("template1", "seeded")))
	records = newDatabase(prefix+"seeded", "product")
	must(admin.Exec(always, "ALTER DATABASE "+prefix+"product SET timezone = 'Pacific/Auckland'")) // nor this
	owner = must(pgxpool.New(always, records+"&pool_max_conns=20"))
	served = as("patient_interactions", records)
	product = serveOn(served)
	code = m.Run()
	product.stop()
	if defect := regexp.MustCompile(`.*status=500.*`).FindString(product.log.String()); defect != "" {
		fmt.Fprintln(os.Stderr, "a request was answered 500:", defect)
		return 1
	}
	return code
}

func must[T any](v T, err error) T {
	if err != nil {
		ending.Lock() // for ever while the tests are interrupted, which takes the database away
		panic(err)
	}
	return v
}

// newDatabase makes a database, empty from template1 or with schema and seed from seeded, and returns its address.
func newDatabase(template string, name ...string) string {
	unique := prefix + cmp.Or(strings.Join(name, ""), strings.ToLower(rand.Text()))
	must(admin.Exec(always, "CREATE DATABASE "+unique+" TEMPLATE "+template))
	address := must(url.Parse(server))
	address.Path, address.RawQuery = "/"+unique, cmp.Or(address.RawQuery, "application_name=tests")
	return address.String()
}

func dropDatabases() {
	rows, _ := admin.Query(always, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", prefix)
	names, _ := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		admin.Exec(always, "DROP DATABASE "+name+" WITH (FORCE)")
	}
}

// as is a database's address with a role to take on.
func as(role, address string) string { return address + "&role=" + role }

// service is the real handler on a real database, spoken to over HTTP.
type service struct {
	url  string
	log  bytes.Buffer // to be read after stop
	stop func()
}

func serveOn(database string) *service {
	s, store := &service{}, must(OpenStore(always, database))
	web := httptest.NewServer(newHandler(store, slog.New(slog.NewTextHandler(&s.log, nil))))
	s.url, s.stop = web.URL, func() { web.Close(); store.Close() }
	return s
}

// apart is a service on a database of its own, and a connection of that one's owner.
func apart(t testing.TB) (*service, *pgx.Conn) {
	database := newDatabase(prefix + "seeded")
	s, owner := serveOn(as("patient_interactions", database)), must(pgx.Connect(always, database))
	t.Cleanup(func() { s.stop(); owner.Close(always) })
	return s, owner
}

// The words in which the tests speak HTTP. An address that begins with a slash is one of the product.

type answer struct {
	*http.Response
	body string
}

// browser shows redirects instead of following them.
var browser = http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// try sends a request, as JSON if it has a body and says nothing else.
func try(t testing.TB, method, address, body string, headers ...string) (a answer, err error) {
	t.Helper()
	if strings.HasPrefix(address, "/") {
		address = product.url + address
	}
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		return a, err
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	if body != "" && r.Header["Content-Type"] == nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if a.Response, err = browser.Do(r); err != nil {
		return a, err
	}
	defer a.Body.Close()
	raw, err := io.ReadAll(a.Body)
	a.body = string(raw)
	return a, err
}

func send(t testing.TB, method, address, body string, headers ...string) answer {
	t.Helper()
	a, err := try(t, method, address, body, headers...)
	require.NoError(t, err)
	require.NotEmpty(t, a.Header.Get("X-Request-Id"), "every answer carries it")
	return a
}

// decoded is the JSON of an answer, which may have no other fields than T.
func decoded[T any](t testing.TB, status int, a answer) (out T) {
	t.Helper()
	require.Equal(t, status, a.StatusCode, a.body)
	decoder := json.NewDecoder(strings.NewReader(a.body))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&out), a.body)
	return out
}

func read[T any](t testing.TB, address string) T {
	t.Helper()
	a := send(t, "GET", address, "")
	require.Equal(t, "application/json", a.Header.Get("Content-Type"), a.body)
	return decoded[T](t, 200, a)
}

// write makes an entry, whose address is in the answer.
func write(t testing.TB, address, body string, headers ...string) Interaction {
	t.Helper()
	a := send(t, "POST", address, body, headers...)
	made := decoded[Interaction](t, 201, a)
	require.Equal(t, entryAt(made.PatientID, made.ID), a.Header.Get("Location"))
	return made
}

// leak matches what a client must never see: SQL, types and packages of Go, names inside the database, paths.
var leak = regexp.MustCompile(`(?i)sqlstate|\bselect\b|\binsert\b|relation "|constraint|violates|pgx|\bu?int64|float64|\bstruct\b|main\.|json:|\bgo\b|` +
	`strconv|runtime|goroutine|dial |tcp|\.go:|\.sql:|/tmp|/usr|/var|/home|/root`)

// problem is the problem in an answer of that status, of the form that all have.
func problem(t testing.TB, status int, a answer) Problem {
	t.Helper()
	p := decoded[Problem](t, status, a)
	require.Equal(t, []any{"about:blank", http.StatusText(status), status}, []any{p.Type, p.Title, p.Status})
	require.Equal(t, "application/problem+json no-store", a.Header.Get("Content-Type")+" "+a.Header.Get("Cache-Control"))
	require.Equal(t, status == 503, a.Header.Get("Retry-After") != "")
	require.NotEmpty(t, p.Detail)
	require.NotRegexp(t, leak, a.body)
	return p
}

func refused(t testing.TB, status int, method, address, body string, headers ...string) Problem {
	t.Helper()
	return problem(t, status, send(t, method, address, body, headers...))
}

// faulty expects a refusal that names these fields and no others, each with what is wrong.
func faulty(t testing.TB, status int, fields, method, address, body string, headers ...string) {
	t.Helper()
	named := []string{}
	for _, e := range refused(t, status, method, address, body, headers...).Errors {
		require.NotEmpty(t, e.Detail)
		named = append(named, e.Field)
	}
	require.ElementsMatch(t, strings.Fields(fields), named, "%s %s %.200s", method, address, body)
}

func of(patient int64) string         { return fmt.Sprintf("/patients/%d/interactions", patient) }
func timelineOf(patient int64) string { return fmt.Sprintf("/patients/%d/timeline", patient) }
func entryAt(patient, id int64) string {
	return fmt.Sprintf("/patients/%d/interactions/%d", patient, id)
}
func amending(i Interaction) string { return entryAt(i.PatientID, i.ID) + "/amendments" }

// entry is a body in which doctor 1 finds the patient healthy, but for the fields that are given.
func entry(fields ...any) string {
	body := map[string]any{"doctor_id": 1, "outcome": "healthy", "notes": "seen"}
	for i := 0; i < len(fields); i += 2 {
		body[fields[i].(string)] = fields[i+1]
	}
	return string(must(json.Marshal(body)))
}

// on is nine o'clock of a day in January 2024.
func on(day int) time.Time { return time.Date(2024, 1, day, 9, 0, 0, 0, time.UTC) }

// documents writes an entry of that day.
func documents(t testing.TB, patient int64, outcome string, day int, fields ...any) Interaction {
	t.Helper()
	return write(t, of(patient), entry(append([]any{"outcome", outcome, "occurred_at", on(day)}, fields...)...))
}

func amends(t testing.TB, i Interaction, outcome string, fields ...any) Interaction {
	t.Helper()
	return write(t, amending(i), entry(append([]any{"outcome", outcome}, fields...)...))
}

func ids(entries ...Interaction) []int64 {
	all := []int64{}
	for _, i := range entries {
		all = append(all, i.ID)
	}
	return all
}

// everyPage reads a list to its end. The address has a query already; after each page it does the next thing.
func everyPage[T any](t testing.TB, address string, meanwhile ...func()) []T {
	t.Helper()
	items := []T{}
	for cursor := ""; ; {
		page := read[PageOf[T]](t, address+"&cursor="+cursor)
		if items = append(items, page.Items...); page.NextCursor == nil {
			return items
		}
		cursor = *page.NextCursor
		if len(meanwhile) > 0 {
			meanwhile[0]()
			meanwhile = meanwhile[1:]
		}
	}
}

// historyOf is the first page of a patient's history with a filter, as ids.
func historyOf(t testing.TB, patient int64, filter string) []int64 {
	t.Helper()
	return ids(read[PageOf[Interaction]](t, of(patient)+"?"+filter).Items...)
}

// found is the patients of a list, by name without what keeps a test's patients apart from others.
func found(patients []Patient, tag string) string {
	all := []string{}
	for _, p := range patients {
		all = append(all, p.Name)
	}
	return strings.ReplaceAll(strings.Join(all, ", "), tag, "")
}

func stateOf(t testing.TB, patient int64) Patient {
	t.Helper()
	return read[Patient](t, fmt.Sprintf("/patients/%d", patient))
}

// newPatient registers a patient, born on 1980-01-01.
func newPatient(t testing.TB, name string) (id int64) {
	t.Helper()
	require.NoError(t, owner.QueryRow(always, "INSERT INTO patients (name, birth_date) VALUES ($1, '1980-01-01') RETURNING id", name).Scan(&id))
	return id
}

// alone lets a test run beside others, with a patient of its own.
func alone(t *testing.T) (patient int64) {
	t.Helper()
	t.Parallel()
	return newPatient(t, t.Name())
}

// atOnce does the same from many clients.
func atOnce[T any](clients int, do func() T) []T {
	results := make([]T, clients)
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() { results[i] = do() })
	}
	all.Wait()
	return results
}

// Lists

func TestDoctorsAreListedByNameThenID(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	must(owner.Exec(always, "INSERT INTO doctors (name, specialty) SELECT n, $1 FROM unnest(ARRAY['Dr. Zorn', 'Dr. Ärmel', 'Dr. Arm', 'Dr. Arm', 'Dr. Ast']) n", tag))
	got := slices.DeleteFunc(everyPage[Doctor](t, "/doctors?limit=2"), func(d Doctor) bool { return d.Specialty != tag })
	require.Len(t, got, 5)
	n := got[4].ID // the first of them that was written
	require.Equal(t, []Doctor{{n + 2, "Dr. Arm", tag}, {n + 3, "Dr. Arm", tag}, {n + 1, "Dr. Ärmel", tag}, {n + 4, "Dr. Ast", tag}, {n, "Dr. Zorn", tag}}, got)
}

func TestPatientsAreListedByUnicodesRootCollationThenID(t *testing.T) {
	t.Parallel()
	tag, want := "-"+rand.Text(), []string{"arzt", "Arzt", "Ärzte", "Azur", "Łuk", "Özil", "ozon", "Zahn", "Zahn", "Żak"}
	for _, i := range []int{9, 7, 1, 8, 5, 0, 3, 2, 6, 4} {
		newPatient(t, want[i]+tag)
	}
	for _, limit := range []string{"1", "3", "10", "1000"} {
		got := everyPage[Patient](t, "/patients?search="+tag+"&limit="+limit)
		require.Equal(t, strings.Join(want, ", "), found(got, tag), limit)
		require.Greater(t, got[8].ID, got[7].ID, "of one name")
	}
}

func TestPatientsRegisteredOrChangedMeanwhileNeitherRepeatNorHideAnother(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	newPatient(t, "B"+tag)
	changed := newPatient(t, "D"+tag)
	newPatient(t, "F"+tag)
	got := everyPage[Patient](t, "/patients?limit=1&health_status=unknown&search="+tag,
		func() { newPatient(t, "A"+tag); newPatient(t, "C"+tag) }, // before and after the cursor
		func() {},
		func() { documents(t, changed, "healthy", 1) }) // the cursor's own patient leaves the list
	require.Equal(t, "B, C, D, F", found(got, tag))
}

func TestSearchFindsAnyPartOfANameInAnyCase(t *testing.T) {
	t.Parallel()
	tag := rand.Text() // at the beginning and at the end of each name, for searches that reach into it
	for _, name := range []string{"Mesut Özil", "100%", "1000", "a_b", "axb", `c\d`, "cd", "Jo Ann", "JoAnn", "Straße", "Σίσυφος"} {
		newPatient(t, tag+name+tag)
	}
	for search, want := range map[string]string{
		tag + "Mesut": "Mesut Özil", "UT ÖZIL" + tag: "Mesut Özil", "özil" + strings.ToLower(tag): "Mesut Özil", tag + "STRAß": "Straße", tag + "ΣΊΣΥ": "Σίσυφος",
		tag + "1": "100%, 1000", "0%" + tag: "100%", tag + "a_b": "a_b", tag + `c\d`: `c\d`, // no character is a wildcard
		tag + "jo ": "Jo Ann", " ann" + tag: "Jo Ann", tag + "JO": "Jo Ann, JoAnn", tag + " ": "", // blanks count
	} {
		require.Equal(t, want, found(read[PageOf[Patient]](t, "/patients?search="+url.QueryEscape(search)).Items, tag), search)
	}
	require.Empty(t, read[PageOf[Patient]](t, "/patients?search="+strings.Repeat("%C3%84", 100)).Items)
	faulty(t, 400, "search", "GET", "/patients?search="+strings.Repeat("%C3%84", 101), "")
}

func TestPatientsAreFilteredByStateAndDoctorAndNameTogether(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	well, ill, moved, struck := newPatient(t, "well"+tag), newPatient(t, "ill"+tag), newPatient(t, "moved"+tag), newPatient(t, "struck"+tag)
	documents(t, well, "healthy", 1, "doctor_id", 2)
	documents(t, ill, "healthy", 1, "doctor_id", 2)
	documents(t, ill, "unhealthy", 2, "doctor_id", 3)
	amends(t, documents(t, moved, "healthy", 1, "doctor_id", 2), "unhealthy", "doctor_id", 3)
	amends(t, documents(t, struck, "healthy", 1, "doctor_id", 2), "entered_in_error", "doctor_id", 3)
	for filter, want := range map[string]string{
		"": "ill, moved, struck, well", "doctor_id=&health_status=&limit=&cursor=": "ill, moved, struck, well", "limit=1": "ill",
		"health_status=healthy": "well", "health_status=unhealthy": "ill, moved", "health_status=unknown": "struck",
		"doctor_id=2": "ill, well", "doctor_id=3": "ill, moved", "doctor_id=4": "", "doctor_id=9223372036854775807": "",
		"doctor_id=2&health_status=unhealthy": "ill", "doctor_id=3&health_status=healthy": "", fmt.Sprintf("health_status=unhealthy&cursor=%d", ill): "moved",
	} {
		require.Equal(t, want, found(read[PageOf[Patient]](t, "/patients?search="+tag+"&"+filter).Items, tag), filter)
	}
}

func TestHistoryShowsNewestFirstAndOfOneInstantTheHighestID(t *testing.T) {
	patient := alone(t)
	a, b, c := documents(t, patient, "healthy", 3), documents(t, patient, "unhealthy", 4), documents(t, patient, "healthy", 4)
	d, e := documents(t, patient, "healthy", 1), documents(t, patient, "healthy", 4)
	for _, limit := range []string{"1", "2", "3", "5", "1000"} {
		require.Equal(t, ids(e, c, b, a, d), ids(everyPage[Interaction](t, of(patient)+"?limit="+limit)...), limit)
	}
}

func TestPageHoldsFiftyUnlessALimitSaysOtherwise(t *testing.T) {
	patient := alone(t)
	must(owner.Exec(always, "INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes) SELECT $1, 1, '2024-01-01', 'healthy', n::text FROM generate_series(1, 1001) n", patient))
	next := ""
	for _, limit := range []string{"", "1", "51", "1000"} {
		page := read[PageOf[Interaction]](t, of(patient)+"?limit="+limit)
		require.Equal(t, cmp.Or(limit, "50"), fmt.Sprint(len(page.Items)))
		next = *page.NextCursor
	}
	last := read[PageOf[Interaction]](t, of(patient)+"?limit=1&cursor="+next) // another limit, the same place
	require.Equal(t, "1", last.Items[0].Notes)
	require.Nil(t, last.NextCursor, "a page that is just full, and the last one")
	for _, limit := range []string{"0", "1001", "-1", "1.5", "x", "99999999999999999999"} {
		for _, list := range []string{"/doctors", "/patients", of(patient)} {
			faulty(t, 400, "limit", "GET", list+"?limit="+limit, "")
		}
	}
}

func TestEntriesWrittenOrAmendedMeanwhileNeitherRepeatNorHideAnother(t *testing.T) {
	t.Parallel()
	for filter, all := range map[string]bool{"": false, "&include_amended=true": true} {
		patient, late, e := newPatient(t, t.Name()), Interaction{}, []Interaction{}
		for day := range 7 {
			e = append(e, documents(t, patient, "healthy", day))
		}
		got := everyPage[Interaction](t, of(patient)+"?limit=2"+filter,
			func() { // the cursor is entry 5
				documents(t, patient, "healthy", 9)
				documents(t, patient, "healthy", 5)
				late = documents(t, patient, "healthy", 4, "occurred_at", on(5).Add(-time.Microsecond))
				amends(t, e[5], "unhealthy")
			},
			func() { // the cursor is entry 4
				amends(t, e[4], "entered_in_error")
				amends(t, e[3], "unhealthy", "occurred_at", on(8))
			})
		want := ids(e[6], e[5], late, e[4], e[3], e[2], e[1], e[0])
		if !all {
			want = slices.Delete(want, 4, 5)
		}
		require.Equal(t, want, ids(got...), filter)
	}
}

func TestCursorIsAPlaceInItsOwnList(t *testing.T) {
	patient := alone(t)
	first, second := documents(t, patient, "healthy", 1), documents(t, patient, "unhealthy", 2)
	elsewhere := documents(t, newPatient(t, "Elsewhere"), "healthy", 3)
	require.Equal(t, ids(first), historyOf(t, patient, fmt.Sprintf("cursor=%d", second.ID)))
	require.Equal(t, ids(first), historyOf(t, patient, fmt.Sprintf("cursor=%d&outcome=healthy", second.ID)), "one that the filter hides")
	for _, id := range []any{first.ID, elsewhere.ID, 1, "9223372036854775807", "9999999999999999999"} {
		require.Empty(t, historyOf(t, patient, fmt.Sprintf("cursor=%v", id)), id)
	}
	for _, cursor := range []string{"x", "0", "-1", "01", "1.5", "%2B1", "1%20", "10000000000000000000000"} {
		for _, list := range []string{"/doctors", "/patients", of(patient)} {
			faulty(t, 400, "cursor", "GET", list+"?cursor="+cursor, "")
		}
	}
}

func TestHistoryIsFilteredByOutcomeDoctorAndTime(t *testing.T) {
	patient := alone(t)
	a, b := documents(t, patient, "healthy", 1), documents(t, patient, "unhealthy", 2, "doctor_id", 2)
	c, d := documents(t, patient, "healthy", 3, "doctor_id", 2), documents(t, patient, "unhealthy", 4)
	e, f := amends(t, d, "entered_in_error", "doctor_id", 3), amends(t, b, "healthy", "doctor_id", 3)
	for filter, want := range map[string][]int64{
		"": ids(c, f, a), "outcome=&doctor_id=&from=&to=&include_amended=&cursor=&limit=": ids(c, f, a), "include_amended=false": ids(c, f, a), "include_amended=true": ids(e, d, c, f, b, a),
		"outcome=healthy": ids(c, f, a), "outcome=unhealthy": ids(), "outcome=unhealthy&include_amended=true": ids(d, b),
		"outcome=entered_in_error": ids(), "outcome=entered_in_error&include_amended=true": ids(e),
		"doctor_id=2": ids(c), "doctor_id=2&include_amended=true": ids(c, b), "doctor_id=999999": ids(),
		"from=2024-01-02T09:00:00Z": ids(c, f), "from=2024-01-02T10:00:00.000001%2B01:00": ids(c), "to=2024-01-03T09:00:00Z": ids(f, a),
		"from=2024-01-02T09:00:00Z&to=2024-01-03T09:00:00Z": ids(f), "from=2024-01-03T09:00:00Z&to=2024-01-03T09:00:00Z": ids(), "from=2024-01-04T09:00:00Z&to=2024-01-01T09:00:00Z": ids(),
		"outcome=healthy&doctor_id=1&to=2024-01-02T09:00:00Z": ids(a),
	} {
		require.Equal(t, want, historyOf(t, patient, filter), filter)
	}
}

func TestListsOfNothingAreEmptyAndNotNull(t *testing.T) {
	patient := alone(t)
	for _, list := range []string{of(patient), of(patient) + "?include_amended=true", "/patients?search=" + rand.Text(), "/patients?cursor=9223372036854775807", "/doctors?cursor=9223372036854775807"} {
		require.JSONEq(t, `{"items": [], "next_cursor": null}`, send(t, "GET", list, "").body, list)
	}
	require.JSONEq(t, `{"health_status": "unknown", "items": []}`, send(t, "GET", timelineOf(patient), "").body)
}

// Health and amendments

func TestHealthStatusIsTheOutcomeOfTheLatestCurrentInteraction(t *testing.T) {
	patient := alone(t)
	is := func(status, at string) {
		t.Helper()
		require.JSONEq(t, fmt.Sprintf(`{"id": %d, "name": %q, "birth_date": "1980-01-01", "health_status": %q, "last_interaction_at": %s}`, patient, t.Name(), status, at),
			send(t, "GET", fmt.Sprintf("/patients/%d", patient), "").body)
		require.Equal(t, status, read[Timeline](t, timelineOf(patient)).HealthStatus)
	}
	is("unknown", "null")
	first := documents(t, patient, "healthy", 2)
	is("healthy", `"2024-01-02T09:00:00Z"`)
	late := documents(t, patient, "unhealthy", 1)
	is("healthy", `"2024-01-02T09:00:00Z"`)
	tie := documents(t, patient, "unhealthy", 2)
	is("unhealthy", `"2024-01-02T09:00:00Z"`) // of one instant the highest id
	moved := amends(t, tie, "unhealthy", "occurred_at", on(3))
	is("unhealthy", `"2024-01-03T09:00:00Z"`)
	struck := amends(t, moved, "entered_in_error")
	require.Equal(t, Instant(on(3)), struck.OccurredAt, "an amendment keeps the instant unless it names another")
	is("healthy", `"2024-01-02T09:00:00Z"`)
	amends(t, late, "entered_in_error")
	amends(t, first, "entered_in_error")
	is("unknown", "null")
	back := amends(t, struck, "unhealthy", "occurred_at", on(7))
	is("unhealthy", `"2024-01-07T09:00:00Z"`)
	require.Equal(t, ids(back), historyOf(t, patient, ""))
}

func TestTimelineJoinsConsecutiveOutcomesToPeriods(t *testing.T) {
	patient := alone(t)
	documents(t, patient, "unhealthy", 4)
	documents(t, patient, "healthy", 1)
	documents(t, patient, "healthy", 6)
	documents(t, patient, "healthy", 6, "occurred_at", on(6).Add(time.Microsecond))
	documents(t, patient, "unhealthy", 3) // late, and yet in its place
	documents(t, patient, "healthy", 3)   // between the two, at the instant of the first
	documents(t, patient, "unhealthy", 3) // and back
	amends(t, documents(t, patient, "unhealthy", 5), "entered_in_error")
	amends(t, documents(t, patient, "unhealthy", 2), "healthy")
	require.JSONEq(t, `{"health_status": "healthy", "items": [
		{"outcome": "healthy",   "from": "2024-01-01T09:00:00Z", "to": "2024-01-03T09:00:00Z", "interactions": 2},
		{"outcome": "unhealthy", "from": "2024-01-03T09:00:00Z", "to": "2024-01-03T09:00:00Z", "interactions": 1},
		{"outcome": "healthy",   "from": "2024-01-03T09:00:00Z", "to": "2024-01-03T09:00:00Z", "interactions": 1},
		{"outcome": "unhealthy", "from": "2024-01-03T09:00:00Z", "to": "2024-01-06T09:00:00Z", "interactions": 2},
		{"outcome": "healthy",   "from": "2024-01-06T09:00:00Z", "to": null, "interactions": 2}]}`, send(t, "GET", timelineOf(patient), "").body)
}

func TestOnlyTheNewestOfAChainCanBeAmended(t *testing.T) {
	patient := alone(t)
	first := documents(t, patient, "healthy", 1)
	second := amends(t, first, "unhealthy")
	require.Equal(t, []*int64{&first.ID, nil}, []*int64{second.Amends, second.AmendedBy})
	third := amends(t, second, "healthy")
	first.AmendedBy, second.AmendedBy = &second.ID, &third.ID // the marks that they bear from now on, wherever they are shown
	require.Equal(t, []Interaction{third, second, first}, read[PageOf[Interaction]](t, of(patient)+"?include_amended=true").Items)
	require.Equal(t, []Interaction{third}, read[PageOf[Interaction]](t, of(patient)).Items)
	for _, i := range []Interaction{first, second} {
		require.Equal(t, i, read[Interaction](t, entryAt(patient, i.ID)))
		require.Contains(t, refused(t, 409, "POST", amending(i), entry()).Detail, fmt.Sprintf("by interaction %d", *i.AmendedBy))
	}
}

func TestOfAmendmentsAtOnceOneWinsAndTheOthersLearnWhich(t *testing.T) {
	patient := alone(t)
	first := documents(t, patient, "healthy", 1)
	answers := atOnce(10, func() answer { return send(t, "POST", amending(first), entry("outcome", "unhealthy")) })
	all := historyOf(t, patient, "include_amended=true")
	require.Len(t, all, 2)
	answers = slices.DeleteFunc(answers, func(a answer) bool { return a.StatusCode == 201 })
	require.Len(t, answers, 9)
	for _, a := range answers {
		require.Contains(t, problem(t, 409, a).Detail, fmt.Sprintf("by interaction %d", all[0]))
	}
}

func TestManyWritersOfOnePatientDisturbNobodyWhoPages(t *testing.T) {
	patient := alone(t)
	var old []int64
	for day := range 10 {
		old = append(ids(documents(t, patient, "healthy", day)), old...)
	}
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for day := range 8 {
				documents(t, patient, "unhealthy", day)
				seen := everyPage[Interaction](t, of(patient)+"?limit=7")
				require.True(t, slices.IsSortedFunc(seen, newestFirst))
				require.Len(t, slices.CompactFunc(slices.Clone(seen), func(a, b Interaction) bool { return a.ID == b.ID }), len(seen))
				require.Equal(t, old, ids(slices.DeleteFunc(seen, func(i Interaction) bool { return i.Outcome == "unhealthy" })...))
			}
		})
	}
	writers.Wait()
	require.Len(t, historyOf(t, patient, "limit=1000"), 10+64)
	require.Equal(t, "healthy", stateOf(t, patient).HealthStatus, "day 9 is the last")
}

var newestFirst = func(a, b Interaction) int { return cmp.Or(b.OccurredAt.Compare(a.OccurredAt), cmp.Compare(b.ID, a.ID)) }

func TestRepeatedRequestAnswersWithTheEntryFirstMadeAsItStandsNow(t *testing.T) {
	patient := alone(t)
	sent := entry("notes", " seen ", "occurred_at", "2024-05-13T11:30:00+02:00")
	made := write(t, of(patient), sent, "Idempotency-Key", "k")
	amendment := write(t, amending(made), entry("outcome", "unhealthy"), "Idempotency-Key", "a")
	made.AmendedBy = &amendment.ID
	for _, again := range []string{sent, entry("occurred_at", "2024-05-13T09:30:00.0000009Z"), entry()} {
		require.Equal(t, made, write(t, of(patient), again, "Idempotency-Key", "k"))
	}
	for _, again := range []string{entry("outcome", "unhealthy"), entry("outcome", "unhealthy", "occurred_at", made.OccurredAt)} {
		require.Equal(t, amendment, write(t, amending(made), again, "Idempotency-Key", "a"))
	}
	require.Equal(t, ids(amendment, made), historyOf(t, patient, "include_amended=true"), "nothing else was written")
}

func TestKeyOfOneRequestIsRefusedForAnother(t *testing.T) {
	patient := alone(t)
	first := write(t, of(patient), entry(), "Idempotency-Key", "k")
	second := write(t, amending(first), entry(), "Idempotency-Key", "a")
	for _, body := range []string{entry("doctor_id", 2), entry("outcome", "unhealthy"), entry("notes", "seen."), entry("occurred_at", time.Time(first.OccurredAt).Add(-time.Microsecond))} {
		faulty(t, 422, "Idempotency-Key", "POST", of(patient), body, "Idempotency-Key", "k")
	}
	faulty(t, 422, "Idempotency-Key", "POST", amending(first), entry(), "Idempotency-Key", "k")
	faulty(t, 422, "Idempotency-Key", "POST", amending(second), entry(), "Idempotency-Key", "a")
	faulty(t, 422, "Idempotency-Key", "POST", of(patient), entry(), "Idempotency-Key", "a")
	require.Equal(t, ids(second, first), historyOf(t, patient, "include_amended=true"))
	require.NotEqual(t, first.ID, write(t, of(newPatient(t, "Other")), entry(), "Idempotency-Key", "k").ID, "another patient's keys are others")
}

func TestKeyIsVisibleASCIIOfOneTo255CharactersGivenOnce(t *testing.T) {
	patient := alone(t)
	made := write(t, of(patient), entry(), "Idempotency-Key", strings.Repeat("!~", 127)+"k")
	for _, key := range []string{"", strings.Repeat("k", 256), "schlüssel", "a b", "a\tb", "\xff"} {
		faulty(t, 400, "Idempotency-Key", "POST", of(patient), entry(), "Idempotency-Key", key)
	}
	faulty(t, 400, "Idempotency-Key", "POST", of(patient), entry(), "Idempotency-Key", "k", "Idempotency-Key", "k")
	require.Equal(t, ids(made), historyOf(t, patient, ""))
}

func TestRefusedRequestDoesNotUseItsKeyUp(t *testing.T) {
	patient := alone(t)
	first := documents(t, patient, "healthy", 1)
	second := amends(t, first, "healthy")
	refused(t, 422, "POST", of(patient), entry("doctor_id", 999999), "Idempotency-Key", "k")
	refused(t, 422, "POST", of(patient), entry("notes", ""), "Idempotency-Key", "k")
	refused(t, 404, "POST", entryAt(patient, 1)+"/amendments", entry(), "Idempotency-Key", "k")
	refused(t, 409, "POST", amending(first), entry(), "Idempotency-Key", "k")
	write(t, amending(second), entry(), "Idempotency-Key", "k")
}

func TestTwentyCopiesAtOnceMakeOneEntry(t *testing.T) {
	patient := alone(t)
	first := documents(t, patient, "healthy", 1)
	for n, address := range []string{of(patient), amending(first)} {
		made := atOnce(20, func() Interaction {
			return write(t, address, entry("outcome", "unhealthy"), "Idempotency-Key", address)
		})
		require.Len(t, slices.Compact(ids(made...)), 1)
		require.Len(t, historyOf(t, patient, "include_amended=true"), n+2)
	}
}

func TestNotesAreKeptAsSentButForWhiteSpaceAround(t *testing.T) {
	patient := alone(t)
	for _, notes := range []string{"x \n y", `<b>&amp; "quoted" \ud800 %s 'x'; --`, "\u200bzero width\ufeff"} {
		const white = " \t\r\n\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u3000"
		require.Equal(t, notes, write(t, of(patient), entry("notes", white+notes+white)).Notes)
	}
	for letter := range strings.SplitSeq(`tnvfrbx0\`, "") {
		made := write(t, of(patient), entry("notes", letter+" "+letter))
		require.Equal(t, letter+" "+letter, read[Interaction](t, entryAt(patient, made.ID)).Notes)
	}
}

func TestNotesHold10000CharactersHoweverTheyAreEscaped(t *testing.T) {
	patient := alone(t)
	for character, escaped := range map[string]string{"x": "x", "ä": `\u00e4`, "😀": `\uD83d\ude00`} {
		sent := fmt.Sprintf(`{"doctor_id": 1, "outcome": "healthy", "notes": "  %s  "}`, strings.Repeat(escaped, 10_000))
		require.Equal(t, strings.Repeat(character, 10_000), write(t, of(patient), sent).Notes)
	}
	faulty(t, 422, "notes", "POST", of(patient), entry("notes", strings.Repeat("ä", 10_001)))
}

func TestBodyHoldsAtMost128KiB(t *testing.T) {
	patient, body := alone(t), entry()
	write(t, of(patient), body+strings.Repeat(" ", 131_072-len(body)))
	refused(t, 413, "POST", of(patient), body+strings.Repeat(" ", 131_073-len(body)))
	refused(t, 413, "POST", of(patient), strings.Repeat("{", 200_000))
}

func TestInteractionOccursBetweenBirthAndFiveMinutesAhead(t *testing.T) {
	patient := alone(t)
	ahead := time.Now().UTC().Truncate(time.Second).Add(5*time.Minute - 10*time.Second).Format(time.RFC3339)
	for sent, kept := range map[string]string{
		ahead:                  ahead,
		"1979-12-31T10:00:00Z": "1979-12-31T10:00:00Z", "1980-01-01T00:00:00+14:00": "1979-12-31T10:00:00Z", // the first instant, here and elsewhere
		"2024-05-13T11:30:00.1234569+02:00": "2024-05-13T09:30:00.123456Z",
	} {
		require.Contains(t, send(t, "POST", of(patient), entry("occurred_at", sent)).body, fmt.Sprintf(`"occurred_at":%q`, kept))
	}
	late := time.Now().Add(5*time.Minute + 10*time.Second).Format(time.RFC3339)
	for _, sent := range []string{late, "9999-12-31T23:59:59Z", "1979-12-31T09:59:59.999999Z", "1979-12-31T11:59:59+02:00", "0001-01-01T00:00:00Z", "0000-01-01T00:00:00Z"} {
		faulty(t, 422, "occurred_at", "POST", of(patient), entry("occurred_at", sent))
	}
}

func TestInteractionOccursNowUnlessItSaysWhen(t *testing.T) {
	patient := alone(t)
	before := time.Now().Truncate(time.Microsecond)
	made := write(t, of(patient), entry("occurred_at", nil))
	require.WithinRange(t, time.Time(made.OccurredAt), before, time.Now())
	require.WithinDuration(t, time.Now(), time.Time(made.RecordedAt), time.Minute)
	require.Regexp(t, `"recorded_at":"[^"]+Z"`, send(t, "GET", entryAt(patient, made.ID), "").body)
	must(owner.Exec(always, "UPDATE patients SET birth_date = current_date + 3 WHERE id = $1", patient))
	faulty(t, 422, "occurred_at", "POST", of(patient), entry()) // not born yet
	faulty(t, 422, "occurred_at", "POST", amending(made), entry())
}

// Requests that are refused

func TestBodyThatCannotBeReadOrMayNotBeIsRefused(t *testing.T) {
	patient := alone(t)
	with := func(fields string) string {
		return `{"doctor_id": 1, "outcome": "healthy", "notes": "seen", ` + fields + `}`
	}
	for _, c := range []struct {
		name   string
		status int
		faults string
		bodies []string
	}{
		{"no JSON", 400, "", []string{" ", `{"notes": "x"`, "notes=x", "\ufeff" + entry()}},
		{"no object", 400, "body", []string{"[]", `"x"`, "1", "true"}},
		{"an unknown field, of the path and the header too", 400, "", []string{with(`"colour": 1`), with(`"patient_id": 1`), with(`"IdempotencyKey": "k"`), with(`"Idempotency-Key": "k"`)}},
		{"something after it", 400, "", []string{entry() + entry(), entry() + "]", entry() + "x"}},
		{"a doctor of a wrong type", 400, "doctor_id", []string{with(`"doctor_id": "1"`), with(`"doctor_id": 1.0`), with(`"doctor_id": 9223372036854775808`), with(`"doctor_id": [1]`)}},
		{"an outcome of a wrong type", 400, "outcome", []string{with(`"outcome": true`), with(`"outcome": {}`)}},
		{"notes of a wrong type", 400, "notes", []string{with(`"notes": 1`), with(`"notes": {}`)}},
		{"a time of a wrong type", 400, "occurred_at", []string{with(`"occurred_at": 1`), with(`"occurred_at": false`)}},
		{"a time that is none", 400, "", []string{entry("occurred_at", "yesterday"), entry("occurred_at", "2024-05-13T09:30:00"), entry("occurred_at", "2024-05-13"), entry("occurred_at", "2024-02-30T09:30:00Z")}},
		{"half a surrogate pair", 400, "", []string{with(`"notes": "\uD83D"`), with(`"notes": "\ude00"`), with(`"notes": "\ud83d\ud83d"`), with(`"notes": "\ude00\ude00"`), with(`"notes": "\ud83d\n"`), with(`"notes": "\\\ud83d"`), with(`"\ud83d": 1`)}},
		{"bytes that are not UTF-8", 400, "", []string{with("\"notes\": \"\xff\""), with("\"notes\": \"\xed\xa0\xbd\"")}},
		{"nothing in it", 422, "doctor_id notes outcome", []string{"{}", "null", `{"doctor_id": null, "outcome": null, "notes": null, "occurred_at": null}`}},
		{"faults everywhere", 422, "doctor_id notes outcome occurred_at", []string{`{"doctor_id": -1, "outcome": "ill", "notes": "\u3000", "occurred_at": "2999-01-01T00:00:00Z"}`}},
		{"notes that say nothing", 422, "notes", []string{entry("notes", ""), entry("notes", " \n\u2003"), entry("notes", "a\x00b")}},
		{"an outcome that is none", 422, "outcome", []string{entry("outcome", "Healthy"), entry("outcome", ""), entry("outcome", "unknown"), entry("outcome", "entered_in_error")}},
		{"a doctor who does not exist", 422, "doctor_id", []string{entry("doctor_id", 999999), entry("doctor_id", int64(1<<63-1))}},
		{"such a doctor before birth", 422, "doctor_id occurred_at", []string{entry("doctor_id", 999999, "occurred_at", on(-99999))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, body := range c.bodies {
				faulty(t, c.status, c.faults, "POST", of(patient), body)
			}
		})
	}
	require.Empty(t, historyOf(t, patient, "include_amended=true"), "nothing was written")
}

func TestFieldsInOtherCaseAndRepeatedOnesAreTaken(t *testing.T) {
	made := write(t, of(alone(t)), `{"notes": "first", "DOCTOR_ID": 1, "Outcome": "unhealthy", "noteſ": "\ud83d\ude00\\ud83d", "doctor_id": 2}`)
	require.Equal(t, []any{int64(2), "unhealthy", `😀\ud83d`}, []any{made.Doctor.ID, made.Outcome, made.Notes})
}

func TestAddressThatCannotBeReadIsRefused(t *testing.T) {
	patient := alone(t)
	one := entryAt(patient, documents(t, patient, "healthy", 1).ID)
	for _, operation := range []string{"GET /doctors", "GET /patients", "GET /patients/1", "GET " + timelineOf(patient), "GET " + of(patient), "GET " + one, "POST " + of(patient), "POST " + one + "/amendments"} {
		method, path, _ := strings.Cut(operation, " ")
		for query, fault := range map[string]string{"colour=1": "colour", "colour=": "colour", "Limit=1": "Limit", "a=%zz": "", "a=1;b=2": ""} {
			faulty(t, 400, fault, method, path+"?"+query, map[string]string{"POST": entry()}[method])
		}
	}
	every := []string{"limit=1&limit=1", "limit=&limit=", "cursor=1&cursor=1"}
	doctor := []string{"doctor_id=x", "doctor_id=0", "doctor_id=9223372036854775808", "doctor_id=1&doctor_id=2"}
	for list, queries := range map[string][]string{
		"/doctors":  every,
		"/patients": slices.Concat(every, doctor, []string{"search=%00", "search=%ff", "search=a&search=b", "health_status=ill", "health_status=entered_in_error", "health_status=healthy&health_status="}),
		of(patient): slices.Concat(every, doctor, []string{"outcome=unknown", "outcome=%ff", "outcome=healthy&outcome=healthy", "include_amended=1", "include_amended=True", "include_amended=true&include_amended=true",
			"from=2024-01-01", "from=2024-01-01T00:00:00", "from=2024-01-01T00:00:00+01:00" /* a plus sign is a blank */, "from=&from=", "to=tomorrow", "to=2024-01-01T25:00:00Z", "to=2024-01-01T00:00:00Z&to="}),
	} {
		for _, query := range queries {
			field, _, _ := strings.Cut(query, "=")
			faulty(t, 400, field, "GET", list+"?"+query, "")
		}
	}
	faulty(t, 400, "limit cursor x", "GET", "/doctors?limit=0&cursor=x&x=1", "") // all at once
	for _, id := range []string{"x", "0", "-1", "1.5", "9223372036854775808", "%00", "%20", "1%2F"} {
		for _, path := range []string{"/patients/" + id, "/patients/" + id + "/timeline", "/patients/" + id + "/interactions"} {
			faulty(t, 400, "patient_id", "GET", path, "")
		}
		faulty(t, 400, "interaction_id", "GET", of(patient)+"/"+id, "")
		faulty(t, 400, "patient_id", "POST", "/patients/"+id+"/interactions", entry())
		faulty(t, 400, "interaction_id", "POST", of(patient)+"/"+id+"/amendments", entry())
	}
}

func TestWhatDoesNotExistIsNotFound(t *testing.T) {
	patient := alone(t)
	for _, nobody := range []string{"/patients/9223372036854775807", "/patients/999999"} {
		for _, path := range []string{"", "/timeline", "/interactions", "/interactions?include_amended=true", "/interactions/1"} {
			refused(t, 404, "GET", nobody+path, "")
		}
		refused(t, 404, "POST", nobody+"/interactions", entry())
		refused(t, 404, "POST", nobody+"/interactions", entry("doctor_id", 999999))
		refused(t, 404, "POST", nobody+"/interactions/1/amendments", entry())
	}
	elsewhere := documents(t, newPatient(t, "Elsewhere"), "healthy", 1)
	for _, id := range []int64{1<<63 - 1, elsewhere.ID} { // another patient's entry is not there either
		refused(t, 404, "GET", entryAt(patient, id), "")
		refused(t, 404, "POST", entryAt(patient, id)+"/amendments", entry())
	}
	for _, path := range []string{"/nothing", "/patients/", "/patients/1/", "/patients/1/nothing", "/doctors/1", "/index.html", "/openapi.json/", "/docs/nothing.js"} {
		refused(t, 404, "GET", path, "")
	}
}

func TestMethodThatAPathDoesNotTakeIsRefusedWithThoseThatItTakes(t *testing.T) {
	t.Parallel()
	for path, allowed := range map[string]string{
		"/doctors": "GET, HEAD", "/patients": "GET, HEAD", "/patients/1": "GET, HEAD", "/patients/1/timeline": "GET, HEAD", "/patients/1/interactions": "GET, HEAD, POST", "/patients/1/interactions/1": "GET, HEAD",
		"/patients/1/interactions/1/amendments": "POST", "/livez": "GET, HEAD", "/readyz": "GET, HEAD", "/openapi.json": "GET, HEAD", "/": "GET, HEAD", "/docs/": "GET, HEAD",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			if !strings.Contains(allowed, method) {
				a := send(t, method, path, "")
				problem(t, 405, a)
				require.Equal(t, allowed, a.Header.Get("Allow"), method+" "+path)
			}
		}
	}
}

func TestBodyMustSayThatItIsJSON(t *testing.T) {
	patient := alone(t)
	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/json; charset", "multipart/form-data"} {
		refused(t, 415, "POST", of(patient), entry(), "Content-Type", kind)
	}
	require.Empty(t, historyOf(t, patient, ""))
	write(t, of(patient), entry(), "Content-Type", "Application/JSON; charset=utf-8")
}

func TestOtherWebPageMayReadButNotWrite(t *testing.T) {
	patient := alone(t)
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://example.org"}, {"Origin", "null"}} {
		refused(t, 403, "POST", of(patient), entry(), header...)
		require.Equal(t, 200, send(t, "GET", of(patient), "", header...).StatusCode)
	}
	require.Empty(t, historyOf(t, patient, ""))
	for _, header := range [][]string{{"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Site", "none"}, {"Origin", product.url}} {
		write(t, of(patient), entry(), header...)
	}
}

func TestEveryAnswerIsKeptFromCachesAndFromOtherPagesAndHasAHead(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, path := range []string{"/doctors?cursor=99999", "/patients?search=Wendelhorst", "/patients/2", "/patients/2/timeline", "/patients/2/interactions", "/patients/1/interactions/1", "/livez", "/readyz", "/openapi.json", "/nothing", "/patients/x"} {
		get, head := send(t, "GET", path, ""), send(t, "HEAD", path, "")
		for header, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Content-Length": fmt.Sprint(len(get.body))} {
			require.Equal(t, []string{want, want}, []string{get.Header.Get(header), head.Header.Get(header)}, path)
		}
		require.Equal(t, get.StatusCode, head.StatusCode)
		require.Empty(t, head.body)
		require.False(t, seen[get.Header.Get("X-Request-Id")], "each has one of its own")
		seen[get.Header.Get("X-Request-Id")] = true
	}
	require.JSONEq(t, `{"status": "ok"}`, send(t, "GET", "/livez", "").body)
	require.JSONEq(t, `{"status": "ok"}`, send(t, "GET", "/readyz", "").body)
}

// Trouble

func TestLogHasOneLineARequestAndNoWordOfARecord(t *testing.T) {
	t.Parallel()
	const secret = "Grimsvotn"
	s, patient, locked := serveOn(served), newPatient(t, secret), newPatient(t, secret)
	defer lock(locked)()
	routes := map[string]string{} // by request id
	for _, c := range [][]string{
		{`"GET /patients" status=200`, "GET", "/patients?search=" + secret, ""},
		{`"GET /patients" status=400`, "GET", "/patients?" + secret + "=" + secret, ""},
		{`"POST /patients/{patient_id}/interactions" status=201`, "POST", of(patient), entry("notes", secret)},
		{`"POST /patients/{patient_id}/interactions" status=422`, "POST", of(patient), entry("notes", secret, "outcome", secret)},
		{`"POST /patients/{patient_id}/interactions" status=400`, "POST", of(patient), entry(secret, secret)},
		{`"POST /patients/{patient_id}/interactions" status=503`, "POST", of(locked), entry("notes", secret)},
		{`"GET /patients/{patient_id}/timeline" status=400`, "GET", "/patients/" + secret + "/timeline", ""},
		{`"" status=404`, "GET", "/" + secret, ""},
		{`"" status=405`, "DELETE", "/patients/" + secret, ""},
	} {
		routes[send(t, c[1], s.url+c[2], c[3], "Idempotency-Key", secret, "X-Request-Id", secret).Header.Get("X-Request-Id")] = c[0]
	}
	s.stop() // after the last line
	lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
	require.Len(t, lines, len(routes))
	for _, line := range lines {
		id := regexp.MustCompile(`request_id=(\w+)`).FindStringSubmatch(line)[1]
		require.Regexp(t, `^time=\S+ level=INFO msg=request method=[A-Z]+ route=`+regexp.QuoteMeta(routes[id])+` duration=\S+ request_id=`, line)
		require.NotContains(t, line, secret)
	}
}

func TestDefectCostsOneRequestAndTellsTheLogAlone(t *testing.T) {
	t.Parallel()
	log := bytes.Buffer{}
	web := httptest.NewServer(newHandler(nil, slog.New(slog.NewTextHandler(&log, nil)))) // whose every use of the store is a defect
	require.Equal(t, "The service has a defect: tell its operator the X-Request-Id.", refused(t, 500, "GET", web.URL+"/doctors", "").Detail)
	require.Equal(t, 200, send(t, "GET", web.URL+"/livez", "").StatusCode)
	web.Close()
	require.Regexp(t, `status=500 .*error="panic: .*store\.go`, log.String())
}

// lock holds a patient's row, as a stuck program would.
func lock(patient int64) (unlock func()) {
	tx := must(owner.Begin(always))
	must(tx.Exec(always, "SELECT FROM patients WHERE id = $1 FOR UPDATE", patient))
	return func() { tx.Rollback(always) }
}

func TestLockedPatientCostsWritersAMomentAndReadersNothing(t *testing.T) {
	patient := alone(t)
	s, unlock := serveOn(served), lock(patient)
	defer s.stop()
	defer unlock()
	start := time.Now()
	refused(t, 503, "POST", s.url+of(patient), entry(), "Idempotency-Key", "k")
	require.Less(t, time.Since(start), 2*time.Second)
	start = time.Now()
	atOnce(10*maxWrites, func() any { // more than the service serves within the time limit of a request
		refused(t, 503, "POST", s.url+of(patient), entry())
		require.Less(t, time.Since(start), 6*time.Second)
		asked := time.Now()
		require.Empty(t, read[PageOf[Interaction]](t, s.url+of(patient)).Items)
		require.Less(t, time.Since(asked), 2*time.Second)
		return nil
	})
	unlock()
	write(t, s.url+of(patient), entry(), "Idempotency-Key", "k") // which the failed request did not use up
}

func TestUnreachableDatabaseIsAnsweredInTimeWhileTheProcessIsAlive(t *testing.T) {
	t.Parallel()
	silent := must(net.Listen("tcp", "127.0.0.1:0")) // takes connections and never says a word
	defer silent.Close()
	for _, host := range []string{"127.0.0.1:1", silent.Addr().String()} {
		s, start, all := serveOn("postgres://"+host+"/nothing?sslmode=disable"), time.Now(), sync.WaitGroup{}
		defer s.stop()
		for _, path := range []string{"/readyz", "/doctors", "/patients", "/patients/1", "/patients/1/timeline", "/patients/1/interactions", "/patients/1/interactions/1"} {
			all.Go(func() { refused(t, 503, "GET", s.url+path, "") })
		}
		for _, path := range []string{"/patients/1/interactions", "/patients/1/interactions/1/amendments"} {
			all.Go(func() { refused(t, 503, "POST", s.url+path, entry()) })
		}
		for _, path := range []string{"/livez", "/openapi.json", "/docs/"} {
			require.Equal(t, 200, send(t, "GET", s.url+path, "").StatusCode)
		}
		all.Wait()
		require.Less(t, time.Since(start), 6*time.Second)
	}
}

// held writes nothing while its gate is locked.
type held struct {
	io.Writer
	gate *sync.RWMutex
}

func (h held) Write(p []byte) (int, error) {
	h.gate.RLock()
	defer h.gate.RUnlock()
	return h.Writer.Write(p)
}

func TestWhereOneHostHangsTheNextIsAskedSoon(t *testing.T) {
	patient, c, folder, gate := alone(t), must(pgx.ParseConfig(served)), must(os.MkdirTemp("", "")), &sync.RWMutex{}
	defer os.RemoveAll(folder)
	relay := must(net.Listen("unix", folder+"/.s.PGSQL.5432"))
	defer relay.Close()
	pass := func(to, from net.Conn) { io.Copy(held{to, gate}, from); to.Close() }
	go func() {
		for client, err := relay.Accept(); err == nil; client, err = relay.Accept() {
			network, address := pgconn.NetworkAddress(c.Host, c.Port)
			server := must(net.Dial(network, address))
			go pass(server, client)
			go pass(client, server)
		}
	}()
	s := serveOn(fmt.Sprintf("host=%s,%s port=5432,%d user=%s password='%s' dbname=%s sslmode=disable role=patient_interactions", folder, c.Host, c.Port, c.User, c.Password, c.Database))
	document := func() int { return send(t, "POST", s.url+of(patient), entry()).StatusCode }
	unlock := lock(patient)
	atOnce(2*maxWrites, document) // each connection of the pool is made, and waits
	unlock()
	gate.Lock()
	defer gate.Unlock()
	require.NotContains(t, atOnce(2*maxWrites, document), 201)
	start := time.Now()
	for document() != 201 {
		require.Less(t, time.Since(start), 5*time.Second)
	}
	start = time.Now()
	s.stop()
	require.Less(t, time.Since(start), 5*time.Second)
}

func TestTimeWithoutEndIsADefectAndNotToldAsAnotherTime(t *testing.T) {
	t.Parallel()
	s, owner := apart(t)
	must(owner.Exec(always, "UPDATE patients SET last_interaction_at = 'infinity' WHERE id = 1"))
	refused(t, 500, "GET", s.url+"/patients/1", "")
}

func TestWriteWhoseConnectionIsCutIsAskedToRepeat(t *testing.T) {
	t.Parallel()
	s, owner := apart(t)
	answers := make(chan answer)
	must(owner.Exec(always, "BEGIN; SELECT FROM patients WHERE id = 1 FOR UPDATE"))
	go func() { answers <- send(t, "POST", s.url+of(1), entry()) }()
	require.Eventually(t, func() bool {
		var cut int
		must(0, admin.QueryRow(always, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1", owner.Config().Database).Scan(&cut))
		return cut > 0
	}, 10*time.Second, time.Millisecond)
	problem(t, 503, <-answers)
}

func TestPrimaryThatBecameAStandbyIsLeftForTheOneInItsStead(t *testing.T) {
	t.Parallel()
	s, owner := apart(t)
	must(owner.Exec(always, "ALTER DATABASE "+owner.Config().Database+" SET default_transaction_read_only = on")) // for connections to come
	refused(t, 503, "POST", s.url+of(1), entry())
	must(owner.Exec(always, "ALTER DATABASE "+owner.Config().Database+" RESET default_transaction_read_only"))
	write(t, s.url+of(1), entry())
}

func TestDatabaseWithoutTablesOrRoleSaysWhatToLoad(t *testing.T) {
	t.Parallel()
	for _, database := range []string{as("patient_interactions", newDatabase("template1")), as("nobody_of_that_name", records), as("pg_monitor", records)} {
		s := serveOn(database)
		defer s.stop()
		require.Contains(t, refused(t, 503, "GET", s.url+"/readyz", "").Detail, "load schema.sql")
		refused(t, 503, "GET", s.url+"/patients", "")
	}
}

// The document and its page

// dig follows names into decoded JSON.
func dig(v any, path ...string) any {
	for _, name := range path {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	return v
}

func keys(v any) []string {
	object, _ := v.(map[string]any)
	return slices.Sorted(maps.Keys(object))
}

func TestEveryOperationIsDescribedAndAnswersItsOwnExamples(t *testing.T) {
	t.Parallel()
	s, _ := apart(t)
	document, answers, seen := read[any](t, "/openapi.json"), map[string]string{}, map[any]bool{}
	require.Regexp(t, `^3\.1\.`, dig(document, "openapi"))
	for _, path := range keys(dig(document, "paths")) {
		for _, method := range keys(dig(document, "paths", path)) {
			operation, name, address, query, body := dig(document, "paths", path, method), strings.ToUpper(method)+" "+path, path, url.Values{}, ""
			for _, part := range []string{"operationId", "summary", "description"} {
				require.NotEmpty(t, dig(operation, part), name)
				require.False(t, seen[dig(operation, part)], "%s has no %s of its own", name, part)
				seen[dig(operation, part)] = true
			}
			require.Len(t, dig(operation, "tags"), 1, name)
			answers[name] = strings.Join(keys(dig(operation, "responses")), " ")
			for _, status := range keys(dig(operation, "responses")) {
				if status >= "400" && status != "4XX" {
					require.Equal(t, status, fmt.Sprint(dig(operation, "responses", status, "content", "application/problem+json", "example", "status")), name)
				}
			}
			parameters, _ := dig(operation, "parameters").([]any)
			for _, p := range parameters {
				parameter, value := dig(p, "name").(string), cmp.Or(dig(p, "example"), dig(p, "schema", "default"))
				require.NotEmpty(t, dig(p, "description"), parameter)
				address = strings.ReplaceAll(address, "{"+parameter+"}", fmt.Sprint(value))
				if dig(p, "in") == "query" && value != nil {
					query.Set(parameter, fmt.Sprint(value))
				}
			}
			if method == "post" {
				body = string(must(json.Marshal(dig(operation, "requestBody", "content", "application/json", "example"))))
			}
			a := send(t, strings.ToUpper(method), s.url+address+"?"+query.Encode(), body)
			require.Less(t, a.StatusCode, 300, "%s %s", name, a.body)
			schema, _ := dig(operation, "responses", fmt.Sprint(a.StatusCode), "content", "application/json", "schema", "$ref").(string)
			if schema = strings.TrimPrefix(schema, "#/components/schemas/"); path != "/openapi.json" {
				require.Equal(t, keys(dig(document, "components", "schemas", schema, "properties")), keys(decoded[any](t, a.StatusCode, a)), name)
			}
		}
	}
	const one = "/patients/{patient_id}/interactions/{interaction_id}"
	require.Equal(t, map[string]string{
		"GET /doctors": "200 4XX 503", "GET /patients": "200 4XX 503", "GET /patients/{patient_id}": "200 404 4XX 503", "GET /patients/{patient_id}/timeline": "200 404 4XX 503",
		"GET /patients/{patient_id}/interactions": "200 404 4XX 503", "POST /patients/{patient_id}/interactions": "201 404 422 4XX 503", "GET " + one: "200 404 4XX 503",
		"POST " + one + "/amendments": "201 404 409 422 4XX 503", "GET /livez": "200 4XX", "GET /readyz": "200 4XX 503", "GET /openapi.json": "200 4XX",
	}, answers)
	for _, name := range keys(dig(document, "components", "schemas")) {
		properties := dig(document, "components", "schemas", name, "properties")
		always := slices.DeleteFunc(keys(properties), func(field string) bool {
			return name == "Problem" && field == "errors" || strings.HasPrefix(name, "New") && field == "occurred_at"
		})
		require.ElementsMatch(t, always, dig(document, "components", "schemas", name, "required"), name)
		for _, field := range keys(properties) {
			types, _ := dig(properties, field, "type").([]any)
			require.Equal(t, regexp.MustCompile(`_at$|^from$|^to$`).MatchString(field), dig(properties, field, "format") == "date-time", field)
			require.Equal(t, regexp.MustCompile(`^last_|^to$|^amend|^next_`).MatchString(field), slices.Contains(types, any("null")), field)
		}
	}
}

func TestSwaggerUILoadsOnlyWhatTheServiceServesAndItsPolicyAllows(t *testing.T) {
	t.Parallel()
	root := send(t, "GET", "/", "")
	require.Equal(t, []any{302, "/docs/"}, []any{root.StatusCode, root.Header.Get("Location")})
	page := send(t, "GET", "/docs/", "")
	policy := page.Header.Get("Content-Security-Policy")
	require.Contains(t, policy, "default-src 'none'")
	require.NotRegexp(t, `https?:|\*|unsafe`, policy)
	assets := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page.body, -1)
	require.NotEmpty(t, assets)
	for _, asset := range assets {
		require.Regexp(t, "^/docs/", asset[1])
		require.Equal(t, 200, send(t, "GET", asset[1], "").StatusCode, asset[1])
	}
	inline := regexp.MustCompile(`(?s)<(script|style)>(.*?)</`).FindAllStringSubmatch(page.body, -1)
	require.NotEmpty(t, inline)
	for _, part := range inline {
		hash := sha256.Sum256([]byte(part[2]))
		require.Regexp(t, part[1]+`-src [^;]*'sha256-`+regexp.QuoteMeta(base64.StdEncoding.EncodeToString(hash[:]))+`'`, policy)
	}
	require.Contains(t, page.body, "/openapi.json")
}

// A second writer, by plain SQL

func TestSchemaRefusesEveryWriterWhatTheServiceRefuses(t *testing.T) {
	patient := alone(t)
	write(t, of(patient), entry(), "Idempotency-Key", "k")
	tables := map[string]map[string]string{ // rows that would do
		"doctors":      {"name": "'x'", "specialty": "'x'"},
		"patients":     {"name": "'x'", "birth_date": "'2000-01-01'"},
		"interactions": {"patient_id": "1", "doctor_id": "1", "occurred_at": "now()", "outcome": "'healthy'", "notes": "'x'"},
	}
	tried := []string{}
	for _, c := range [][]string{ // a constraint, its table, and what it refuses there
		{"doctors_pkey", "doctors", "id=1"},
		{"doctor_name_not_blank", "doctors", "name=''", `name=E' \t'`},
		{"doctor_specialty_not_blank", "doctors", "specialty=' '"},
		{"patients_pkey", "patients", "id=1"},
		{"patient_name_not_blank", "patients", "name=' '"},
		{"birth_date_has_four_digit_year", "patients", "birth_date='10000-01-01'", "birth_date='0001-12-31 BC'", "birth_date='infinity'"},
		{"unknown_has_no_last_interaction", "patients", "health_status='healthy'", "last_interaction_at=now()"},
		{"enum health_status", "patients", "health_status='ill'"},
		{"interactions_pkey", "interactions", "id=1"},
		{"interactions_patient", "interactions", "patient_id=999999"},
		{"interactions_doctor", "interactions", "doctor_id=999999"},
		{"interactions_amends", "interactions", "amends=2"}, // another patient's
		{"interactions_amended_once", "interactions", "amends=57;patient_id=5"},
		{"amends_an_earlier_interaction", "interactions", "id=999999;amends=999999"},
		{"only_an_amendment_strikes_out", "interactions", "outcome='entered_in_error'"},
		{"enum outcome", "interactions", "outcome='ill'"},
		{"interactions_idempotency_key", "interactions", fmt.Sprintf("idempotency_key='k';patient_id=%d", patient)},
		{"idempotency_key_visible_ascii", "interactions", "idempotency_key=''", "idempotency_key='a b'", "idempotency_key='ä'", "idempotency_key=repeat('k', 256)"},
		{"occurred_at_has_four_digit_year", "interactions", "occurred_at='infinity'", "occurred_at='0001-12-31 BC'"},
		{"notes_length", "interactions", "notes=''", "notes=repeat('ä', 10001)"},
		{"notes_trimmed", "interactions", "notes=' x'", `notes=E'x\n'`, `notes=E'\x0Bx'`, `notes=E'x\f'`, `notes=E'\rx'`, `notes=E'x\t'`},
	} {
		for _, change := range c[2:] {
			row := maps.Clone(tables[c[1]])
			for part := range strings.SplitSeq(change, ";") {
				column, value, _ := strings.Cut(part, "=")
				row[column] = value
			}
			var columns, values []string
			for column, value := range row {
				columns, values = append(columns, column), append(values, value)
			}
			_, err := owner.Exec(always, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)", c[1], strings.Join(columns, ", "), strings.Join(values, ", ")))
			require.ErrorContains(t, err, c[0], change)
		}
		tried = append(tried, c[0])
	}
	rows, _ := owner.Query(always, `SELECT conname FROM pg_constraint WHERE conrelid IN ('doctors'::regclass, 'patients'::regclass, 'interactions'::regclass) AND contype <> 'n'
		UNION SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indrelid = 'interactions'::regclass AND indisunique
		UNION SELECT 'enum ' || typname FROM pg_type WHERE typtype = 'e'`)
	require.ElementsMatch(t, must(pgx.CollectRows(rows, pgx.RowTo[string])), tried, "each has its test")
	require.Equal(t, "amends idempotency_key last_interaction_at", queried(t, `SELECT string_agg(attname, ' ' ORDER BY attname) FROM pg_attribute
		WHERE attrelid IN ('doctors'::regclass, 'patients'::regclass, 'interactions'::regclass) AND attnum > 0 AND NOT attnotnull`), "all that may be null")
}

func queried(t testing.TB, query string) (answer string) {
	t.Helper()
	require.NoError(t, owner.QueryRow(always, query).Scan(&answer))
	return answer
}

func TestNobodyChangesWhatWasDocumentedAndTheServiceNothingAtAll(t *testing.T) {
	t.Parallel()
	_, owner := apart(t) // so that no lock delays others
	refuses := func(because, setting string, statements ...string) {
		t.Helper()
		for _, statement := range statements {
			_, err := owner.Exec(always, "BEGIN; "+setting+"; "+statement)
			require.ErrorContains(t, err, because, statement)
			must(owner.Exec(always, "ROLLBACK"))
		}
	}
	changes := []string{"UPDATE interactions SET notes = 'x'", "UPDATE interactions SET notes = 'x' WHERE false", "DELETE FROM interactions", "TRUNCATE interactions", "TRUNCATE patients CASCADE"}
	refuses("append-only", "SET LOCAL session_replication_role = origin", changes...)
	refuses("append-only", "SET LOCAL session_replication_role = replica", changes...)
	const service = "SET LOCAL ROLE patient_interactions"
	refuses("permission denied", service, changes...)
	refuses("permission denied", service, "UPDATE patients SET health_status = 'unknown', last_interaction_at = NULL", "UPDATE doctors SET name = 'x'", "DELETE FROM patients", "DELETE FROM doctors",
		"INSERT INTO patients (name, birth_date) VALUES ('x', '2000-01-01')", "INSERT INTO doctors (name, specialty) VALUES ('x', 'x')",
		"INSERT INTO interactions (id, patient_id, doctor_id, occurred_at, outcome, notes) OVERRIDING SYSTEM VALUE VALUES (999999, 1, 1, now(), 'healthy', 'x')",
		"INSERT INTO interactions (recorded_at, patient_id, doctor_id, occurred_at, outcome, notes) VALUES (now(), 1, 1, now(), 'healthy', 'x')",
		"CREATE TABLE public.x ()", "CREATE TEMP TABLE x (); CREATE TRIGGER x AFTER INSERT ON x FOR EACH ROW EXECUTE FUNCTION apply_to_patient()", "SET session_replication_role = replica", "SELECT setval('interactions_id_seq', 1)", "SELECT FROM patients FOR UPDATE")
	refuses("must be owner", service, "DROP TABLE interactions", "ALTER TABLE interactions DISABLE TRIGGER ALL", "DROP TRIGGER interactions_append_only ON interactions", "DROP FUNCTION refuse_change CASCADE")
	require.Equal(t, `{"search_path=public, pg_temp"}`, queried(t, "SELECT string_agg(proconfig::text, ' ') FROM pg_proc WHERE prosecdef"), "what runs as owner sees only its tables")
	require.Equal(t, "INSERT interactions.amends, INSERT interactions.doctor_id, INSERT interactions.idempotency_key, INSERT interactions.notes, INSERT interactions.occurred_at, "+
		"INSERT interactions.outcome, INSERT interactions.patient_id, SELECT doctors, SELECT interactions, SELECT patients", queried(t, `SELECT string_agg(DISTINCT privilege_type || ' ' || table_name ||
		CASE privilege_type WHEN 'SELECT' THEN '' ELSE '.' || column_name END, ', ') FROM information_schema.column_privileges WHERE grantee IN ('patient_interactions', 'PUBLIC') AND table_schema = 'public' AND table_name !~ '_interactions'`))
}

func TestHealthStatusStaysRightWhateverASecondWriterDoes(t *testing.T) {
	t.Parallel()
	const insert = "INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, amends) VALUES ($1, 1, $2, $3, 'x', $4)"
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead} {
		patient := newPatient(t, t.Name())
		only := documents(t, patient, "healthy", 9)
		begin := func() pgx.Tx {
			tx := must(owner.BeginTx(always, pgx.TxOptions{IsoLevel: level}))
			must(tx.Exec(always, "SET LOCAL session_replication_role = replica; SELECT FROM interactions LIMIT 1")) // as a restore does; takes the snapshot
			return tx
		}
		one, two, done := begin(), begin(), make(chan error, 1)
		defer one.Rollback(always)
		defer two.Rollback(always)
		must(one.Exec(always, insert, patient, on(5), "unhealthy", nil)) // late, so that nothing changes
		go func() {
			_, err := two.Exec(always, insert, patient, on(9), "entered_in_error", only.ID) // which leaves the late one
			done <- err
		}()
		waits := fmt.Sprintf("SELECT coalesce(wait_event_type, '') FROM pg_stat_activity WHERE pid = %d", two.Conn().PgConn().PID())
		require.Eventually(t, func() bool { return queried(t, waits) == "Lock" }, 10*time.Second, time.Millisecond)
		require.NoError(t, one.Commit(always))
		if err := <-done; level == pgx.RepeatableRead {
			require.ErrorContains(t, err, "could not serialize", "rather than decide from an old snapshot")
			continue
		}
		require.NoError(t, two.Commit(always))
		state := stateOf(t, patient)
		require.Equal(t, []any{"unhealthy", Instant(on(5))}, []any{state.HealthStatus, *state.LastInteractionAt})
	}
}

// A model

// model is what the product must answer, in memory: entries in the order of recording.
type model struct {
	patients []Patient
	doctors  map[int64]string
	entries  []Interaction
}

func current(i Interaction) bool { return i.AmendedBy == nil && i.Outcome != "entered_in_error" }

// history is the patient's entries that match, newest first.
func (m *model) history(patient int64, match func(Interaction) bool) []Interaction {
	matching := slices.DeleteFunc(slices.Clone(m.entries), func(i Interaction) bool { return i.PatientID != patient || !match(i) })
	slices.SortFunc(matching, newestFirst)
	return append([]Interaction{}, matching...)
}

// present is the patient with the present state.
func (m *model) present(p Patient) Patient {
	p.HealthStatus = "unknown"
	if h := m.history(p.ID, current); len(h) > 0 {
		p.HealthStatus, p.LastInteractionAt = h[0].Outcome, &h[0].OccurredAt
	}
	return p
}

func (m *model) timeline(p Patient) Timeline {
	out := Timeline{m.present(p).HealthStatus, []Period{}}
	for _, i := range slices.Backward(m.history(p.ID, current)) {
		last := len(out.Items) - 1
		if last >= 0 && out.Items[last].Outcome == i.Outcome {
			out.Items[last].Interactions++
			continue
		}
		if last >= 0 {
			out.Items[last].To = &i.OccurredAt
		}
		out.Items = append(out.Items, Period{i.Outcome, i.OccurredAt, nil, 1})
	}
	return out
}

// send asks for an entry, with a key of its own; the second time that is a retry.
func (m *model) send(t testing.TB, i Interaction) Interaction {
	t.Helper()
	address := of(i.PatientID)
	if i.Amends != nil {
		address = entryAt(i.PatientID, *i.Amends) + "/amendments"
	}
	return write(t, address, entry("doctor_id", i.Doctor.ID, "outcome", i.Outcome, "notes", i.Notes, "occurred_at", i.OccurredAt), "Idempotency-Key", i.Notes)
}

func (m *model) record(t testing.TB, i Interaction) {
	t.Helper()
	made := m.send(t, i)
	i.ID, i.RecordedAt = made.ID, made.RecordedAt
	require.Equal(t, i, made)
	for n := range m.entries {
		require.Greater(t, i.ID, m.entries[n].ID)
		if i.Amends != nil && m.entries[n].ID == *i.Amends {
			m.entries[n].AmendedBy = &i.ID
		}
	}
	m.entries = append(m.entries, i)
}

func TestFiveHundredRandomOperationsAnswerAsAModelDoes(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	fmt.Sscan(os.Getenv("MODEL_SEED"), &seed)
	t.Logf("repeat it with MODEL_SEED=%d", seed)
	r, tag, m := mathrand.New(mathrand.NewPCG(seed, 0)), rand.Text(), model{doctors: map[int64]string{}}
	for _, d := range read[PageOf[Doctor]](t, "/doctors?limit=1000").Items {
		m.doctors[d.ID] = d.Name
	}
	for _, name := range []string{"Anna", "Änne", "Bert"} {
		m.patients = append(m.patients, stateOf(t, newPatient(t, name+tag)))
	}
	for range 500 {
		p, doctor, at, limit := m.patients[r.IntN(3)], r.Int64N(3)+1, on(r.IntN(12)), r.IntN(9)+1
		outcomes := []string{"healthy", "unhealthy", "entered_in_error"}
		fresh := Interaction{PatientID: p.ID, Doctor: DoctorReference{doctor, m.doctors[doctor]}, OccurredAt: Instant(at), Outcome: outcomes[r.IntN(2)], Notes: rand.Text()}
		all := m.history(p.ID, func(Interaction) bool { return true })
		some := Interaction{}
		if len(all) > 0 {
			some = all[r.IntN(len(all))]
		}
		switch n := r.IntN(8); {
		case n < 2 || len(all) == 0:
			m.record(t, fresh)
		case n == 2 && some.AmendedBy != nil:
			require.Contains(t, refused(t, 409, "POST", amending(some), entry()).Detail, fmt.Sprint(*some.AmendedBy))
		case n == 2:
			fresh.Amends, fresh.Outcome = &some.ID, outcomes[r.IntN(3)]
			m.record(t, fresh)
		case n == 3:
			require.Equal(t, some, read[Interaction](t, entryAt(p.ID, some.ID)))
			require.Equal(t, some, m.send(t, some), "a retry")
		case n == 4:
			require.Equal(t, m.timeline(p), read[Timeline](t, timelineOf(p.ID)))
		case n == 5:
			want := []Patient{}
			for _, p := range m.patients {
				seen := m.history(p.ID, func(i Interaction) bool { return current(i) && i.Doctor.ID == doctor })
				if p = m.present(p); len(seen) > 0 && p.HealthStatus == fresh.Outcome {
					want = append(want, p)
				}
			}
			require.Equal(t, want, everyPage[Patient](t, fmt.Sprintf("/patients?search=%s&limit=%d&doctor_id=%d&health_status=%s", tag, limit, doctor, fresh.Outcome)))
		default:
			amended, from, outcome := r.IntN(2) == 0, on(r.IntN(6)), outcomes[r.IntN(3)]
			query := fmt.Sprintf("%s?limit=%d&include_amended=%t&from=%s&to=%s", of(p.ID), limit, amended, from.Format(time.RFC3339), at.Format(time.RFC3339))
			within := func(i Interaction) bool {
				return (amended || current(i)) && i.OccurredAt.Compare(Instant(from)) >= 0 && i.OccurredAt.Compare(Instant(at)) < 0
			}
			require.Equal(t, m.history(p.ID, within), everyPage[Interaction](t, query))
			found := func(i Interaction) bool { return within(i) && i.Outcome == outcome && i.Doctor.ID == doctor }
			require.Equal(t, m.history(p.ID, found), everyPage[Interaction](t, fmt.Sprintf("%s&outcome=%s&doctor_id=%d", query, outcome, doctor)))
		}
	}
}

// The rules of the schema, tried by a second writer

func TestBirthDate(t *testing.T) {
	t.Parallel()
	const insert = `INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, amends)
	                VALUES ($1, 1, $2, $3, 'secret', $4) RETURNING id`
	newPatientBorn := func(birthDate string) (id int64) {
		insertPatient := "INSERT INTO patients (name, birth_date) VALUES ('Birgit', $1::date) RETURNING id"
		require.NoError(t, owner.QueryRow(t.Context(), insertPatient, birthDate).Scan(&id))
		return id
	}

	t.Run("an interaction can occur once the day has begun in some time zone", func(t *testing.T) {
		patient := newPatientBorn("2024-05-14")

		_, err := owner.Exec(t.Context(), insert, patient, "2024-05-13T10:00:00Z", "healthy", nil)

		require.NoError(t, err)
	})

	t.Run("an interaction a microsecond earlier is refused without naming the date", func(t *testing.T) {
		patient := newPatientBorn("2024-05-14")

		_, err := owner.Exec(t.Context(), insert, patient, "2024-05-13T09:59:59.999999Z", "healthy", nil)

		refused, ok := errors.AsType[*pgconn.PgError](err)
		require.True(t, ok)
		require.Equal(t, "23514", refused.Code)
		require.Equal(t, `interaction violates rule "occurred_at_not_before_birth"`, refused.Message)
		require.Empty(t, refused.Detail)
	})

	t.Run("an interaction can be struck out after the birth date was corrected", func(t *testing.T) {
		patient := newPatientBorn("1980-01-01")
		var wrong int64
		err := owner.QueryRow(t.Context(), insert, patient, "2024-01-01T00:00:00Z", "unhealthy", nil).Scan(&wrong)
		require.NoError(t, err)
		_, err = owner.Exec(t.Context(), "UPDATE patients SET birth_date = '2024-02-01' WHERE id = $1", patient)
		require.NoError(t, err)

		_, err = owner.Exec(t.Context(), insert, patient, "2024-01-01T00:00:00Z", "entered_in_error", wrong)

		require.NoError(t, err)
	})
}

// The program as a process

func TestStart(t *testing.T) {
	t.Parallel()

	t.Run("without a database says what to set", func(t *testing.T) {
		code, output := runProgram(t, nil)

		require.Equal(t, 1, code)
		require.Equal(t, "set DATABASE_URL to a PostgreSQL database, or try the service with sample data: -demo\n", output)
	})

	t.Run("with -help prints the usage", func(t *testing.T) {
		code, output := runProgram(t, []string{"-help"}, "DATABASE_URL="+served)

		require.Equal(t, 0, code)
		require.Contains(t, output, "Usage: patient-interactions")
	})

	t.Run("with an unknown flag prints the usage", func(t *testing.T) {
		code, output := runProgram(t, []string{"-dmeo"}, "DATABASE_URL="+served)

		require.Equal(t, 2, code)
		require.Contains(t, output, "Usage: patient-interactions")
	})

	t.Run("with an argument that is no flag refers to -help", func(t *testing.T) {
		code, output := runProgram(t, []string{"demo"}, "DATABASE_URL="+served)

		require.Equal(t, 1, code)
		require.Equal(t, "unexpected argument \"demo\": see -help\n", output)
	})

	t.Run("with a malformed DATABASE_URL names it", func(t *testing.T) {
		code, output := runProgram(t, nil, "DATABASE_URL=postgres://%zz")

		require.Equal(t, 1, code)
		require.Contains(t, output, "read DATABASE_URL: ")
		require.Equal(t, 1, strings.Count(output, "\n"))
	})

	t.Run("on a port that is taken says what to set", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close()
		addr := listener.Addr().String()

		code, output := runProgram(t, nil, "DATABASE_URL="+served, "ADDR="+addr)

		require.Equal(t, 1, code)
		require.Equal(t, "listen tcp "+addr+": bind: address already in use: "+
			"set ADDR to another address, such as 127.0.0.1:8081\n", output)
	})

	t.Run("succeeds while the database is away", func(t *testing.T) {
		p := startProgram(t, nil, "DATABASE_URL=postgres://127.0.0.1:1/nothing?sslmode=disable")

		require.Equal(t, 200, send(t, "GET", p.url+"/livez", "").StatusCode)
	})
}

func TestReadyFlag(t *testing.T) {
	t.Parallel()
	addressOf := func(p *program) string { return strings.TrimPrefix(p.url, "http://127.0.0.1") } // such as :8080

	t.Run("succeeds beside a service that is ready, whatever proxy is set", func(t *testing.T) {
		p := startProgram(t, nil, "DATABASE_URL="+served)

		code, output := runProgram(t, []string{"-ready"}, "ADDR="+addressOf(p), "HTTP_PROXY=http://127.0.0.1:9")

		require.Equal(t, 0, code)
		require.Empty(t, output)
	})

	t.Run("fails beside a service without a database", func(t *testing.T) {
		p := startProgram(t, nil, "DATABASE_URL=postgres://127.0.0.1:1/nothing?sslmode=disable")

		code, output := runProgram(t, []string{"-ready"}, "ADDR="+addressOf(p))

		require.Equal(t, 1, code)
		require.Equal(t, "not ready: the service answered 503 Service Unavailable\n", output)
	})

	t.Run("fails without a service", func(t *testing.T) {
		code, output := runProgram(t, []string{"-ready"}, "ADDR=127.0.0.1:1")

		require.Equal(t, 1, code)
		require.Contains(t, output, "not ready: ")
		require.Contains(t, output, "connection refused")
		require.Equal(t, 1, strings.Count(output, "\n"))
	})
}

func TestStop(t *testing.T) {
	t.Parallel()

	t.Run("answers the requests in flight first", func(t *testing.T) {
		t.Parallel()
		patient := newPatient(t, t.Name())
		p := startProgram(t, nil, "DATABASE_URL="+served)
		upload := startUpload(t, p.url+of(patient))
		require.NoError(t, p.Process.Signal(syscall.SIGTERM))
		require.Eventually(t, func() bool {
			_, err := try(t, "GET", p.url+"/livez", "")
			return err != nil
		}, 5*time.Second, time.Millisecond, "it should accept no new connection")

		upload.finish()

		require.Equal(t, 201, <-upload.status)
		require.NoError(t, p.Wait(), "it should exit with 0")
		require.Len(t, historyOf(t, patient, ""), 1)
	})

	t.Run("closes connections that are busy for longer than 8 seconds", func(t *testing.T) {
		t.Parallel()
		p := startProgram(t, nil, "DATABASE_URL="+served)
		upload := startUpload(t, p.url+of(1))
		stopped := time.Now()
		require.NoError(t, p.Process.Signal(os.Interrupt))

		require.NoError(t, p.Wait(), "it should exit with 0")
		require.WithinRange(t, time.Now(), stopped.Add(stopTimeout), stopped.Add(stopTimeout+2*time.Second))
		require.Contains(t, p.log(), "closing the connections that are still busy")
		upload.finish()
		require.Zero(t, <-upload.status, "the client should get no answer")
	})
}

func TestDemo(t *testing.T) {
	t.Parallel()
	if _, err := findPostgres(); err != nil {
		code, output := runProgram(t, []string{"-demo"})
		require.Equal(t, 1, code)
		require.Contains(t, output, "run 'sudo apt-get install -y postgresql'")
		return
	}

	t.Run("serves the sample data as the role patient_interactions", func(t *testing.T) {
		t.Parallel()
		p := startProgram(t, []string{"-demo"})

		require.Len(t, read[PageOf[Patient]](t, p.url+"/patients").Items, 12)
		conn := p.connectToDemo(t)
		var users string
		err := conn.QueryRow(t.Context(), `SELECT string_agg(DISTINCT usename, ',') FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&users)
		require.NoError(t, err)
		require.Equal(t, "patient_interactions", users)
	})

	for name, signal := range map[string]os.Signal{
		"leaves no process and no directory after Ctrl-C":                  os.Interrupt,
		"leaves no process and no directory after SIGTERM":                 syscall.SIGTERM,
		"leaves no process and no directory after its terminal was closed": syscall.SIGHUP,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, []string{"-demo"})
			conn := p.connectToDemo(t)

			require.NoError(t, p.Process.Signal(signal))

			require.NoError(t, p.Wait(), "it should exit with 0")
			require.NoDirExists(t, p.demoDir(t))
			require.Error(t, conn.Ping(t.Context()), "PostgreSQL should be gone")
		})
	}
}

// program is the service as a process of its own.
type program struct {
	*exec.Cmd
	url     string
	logFile string
}

func newProgram(t testing.TB, args []string, env ...string) *program {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	logFile, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(func() { logFile.Close() })

	p := &program{Cmd: exec.Command(executable, args...), logFile: logFile.Name()}
	p.Stdout, p.Stderr = logFile, logFile
	p.Env = append(os.Environ(), "RUN_PROGRAM=1", "ADDR=127.0.0.1:0", "DATABASE_URL=") // the last value of a name counts
	p.Env = append(p.Env, env...)
	return p
}

// startProgram starts the service and waits until it serves.
func startProgram(t testing.TB, args []string, env ...string) *program {
	t.Helper()
	p := newProgram(t, args, env...)
	require.NoError(t, p.Start())
	t.Cleanup(func() {
		p.Process.Signal(syscall.SIGTERM) // unlike SIGKILL, it ends PostgreSQL too
		p.Wait()
	})
	serving := regexp.MustCompile(`url=(http://[0-9.:]+)/docs/`)
	require.Eventually(t, func() bool {
		found := serving.FindStringSubmatch(p.log())
		if found != nil {
			p.url = found[1]
		}
		return found != nil
	}, 20*time.Second, 5*time.Millisecond)
	return p
}

// runProgram runs the program to its end.
func runProgram(t testing.TB, args []string, env ...string) (exitCode int, output string) {
	t.Helper()
	p := newProgram(t, args, env...)
	require.NoError(t, p.Start())
	defer time.AfterFunc(20*time.Second, func() { p.Process.Kill() }).Stop()
	p.Wait()
	return p.ProcessState.ExitCode(), p.log()
}

func (p *program) log() string {
	text, _ := os.ReadFile(p.logFile)
	return string(text)
}

func (p *program) demoDir(t testing.TB) string {
	t.Helper()
	found := regexp.MustCompile(`program stops: (\S+)`).FindStringSubmatch(p.log())
	require.NotNil(t, found)
	return found[1]
}

// connectToDemo connects to the throw-away PostgreSQL as its owner.
func (p *program) connectToDemo(t testing.TB) *pgx.Conn {
	t.Helper()
	server := throwawayPostgres{dir: p.demoDir(t)}
	conn, err := pgx.Connect(t.Context(), server.databaseURL("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// upload is a request that the service has begun to read.
type upload struct {
	finish func()
	status chan int // that of the answer, or 0 without one
}

func startUpload(t testing.TB, url string) *upload {
	t.Helper()
	body, writer := io.Pipe()
	request, err := http.NewRequest("POST", url, body)
	require.NoError(t, err)
	request.Header = http.Header{"Content-Type": {"application/json"}, "Expect": {"100-continue"}}

	status := make(chan int, 1)
	go func() {
		response, err := (&http.Transport{ExpectContinueTimeout: time.Minute}).RoundTrip(request)
		if err != nil {
			status <- 0
			return
		}
		response.Body.Close()
		status <- response.StatusCode
	}()
	_, err = writer.Write([]byte(entry())) // returns once the service has asked for the body
	require.NoError(t, err)
	return &upload{finish: func() { writer.Close() }, status: status}
}

func TestClientThatIsSlowOrSendsTooLargeAHeaderCostsItselfTheConnection(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil, "DATABASE_URL="+served)
	for sent, want := range map[string]string{
		"GET /livez HTTP/1.1\r\nHost: x\r\n":                                               "", // and no more
		"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n": " 431 ",
	} {
		c := must(net.Dial("tcp", p.url[7:]))
		defer c.Close()
		must(c.Write([]byte(sent)))
		must(0, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		require.Contains(t, string(must(io.ReadAll(c))), want)
	}
}

func TestSlowReadersOfLargePagesLeaveMemoryForOthers(t *testing.T) {
	patient := alone(t)
	must(owner.Exec(always, "INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes) SELECT $1, 1, now(), 'healthy', repeat('😀', 10000) FROM generate_series(1, 1000)", patient))
	large := fmt.Sprintf("%s?limit=%d", of(patient), maxSending/40_400/8) // each entry of 40.2 KB, so that eight are 0.7 MB under maxSending
	slow := []io.Reader{}
	for range 8 {
		c := must(net.Dial("tcp", product.url[7:]))
		defer c.Close()
		must(0, c.(*net.TCPConn).SetReadBuffer(1<<16)) // or the kernel reads for it
		fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", large)
		status := make([]byte, len("HTTP/1.0 200"))
		must(io.ReadFull(c, status))
		require.Equal(t, "HTTP/1.0 200", string(status))
		slow = append(slow, c)
	}
	refused(t, 503, "GET", large, "")
	require.Len(t, historyOf(t, patient, "limit=1"), 1)
	must(io.Copy(io.Discard, io.MultiReader(slow...)))
	require.Equal(t, 200, send(t, "GET", large, "").StatusCode)
}

// Anything at all

// fuzz sends whatever a client may send, which is answered or refused, and never a defect.
func fuzz(f *testing.F, examples []string, ask func(t *testing.T, input string) (answer, error)) {
	for _, example := range examples {
		f.Add(example)
	}
	f.Fuzz(func(t *testing.T, input string) {
		a, err := ask(t, input)
		if err != nil || a.Header.Get("X-Request-Id") == "" {
			return // net/http itself did not send it, or did not take it
		}
		require.Less(t, a.StatusCode, 500, a.body)
		if a.StatusCode >= 400 {
			problem(t, a.StatusCode, a)
		}
	})
}

func FuzzBody(f *testing.F) {
	fuzz(f, []string{entry(), "{", `{"notes": "\ud800"}`, "[[[", "\xff", `{"doctor_id": 1e400}`, `{"occurred_at": "2024-13-01T00:00:00Z", "notes": "\u0000"}`,
		`{"notes": "\udbff\udfff", "doctor_id": 1, "outcome": "healthy"}`}, func(t *testing.T, body string) (answer, error) {
		return try(t, "POST", of(1), body, "Content-Type", "application/json")
	})
}

func FuzzQuery(f *testing.F) {
	fuzz(f, []string{"limit=1&cursor=9", "from=0000-01-01T00:00:00Z&to=9999-12-31T23:59:59%2B24:00", "outcome=%00", "%", "a;b", "doctor_id=-0&&=", "limit=%EF%BC%91"}, func(t *testing.T, query string) (answer, error) {
		return try(t, "GET", of(1)+"?"+strings.NewReplacer("#", "", " ", "+").Replace(query), "")
	})
}

func FuzzHeader(f *testing.F) {
	fuzz(f, []string{"k", "", "\xff", `application/json; a="`, "null", "http://[::1]:namedport", strings.Repeat("x", 300)}, func(t *testing.T, value string) (answer, error) {
		return try(t, "POST", of(1), "{}", "Idempotency-Key", value, "Content-Type", value, "Origin", value, "Sec-Fetch-Site", value)
	})
}

// Speed: each operation over HTTP, and beside it the same statement through pgx alone, so that their ratio says what the
// service costs whatever the machine does.

func BenchmarkOperations(b *testing.B) {
	s, conn := apart(b)
	for _, statement := range []string{ // 100,000 patients, and 1,000,000 interactions, 20,000 of them the first one's
		"ALTER TABLE interactions DISABLE TRIGGER ALL",
		"INSERT INTO patients (name, birth_date) SELECT initcap(md5(n::text)), '1980-01-01' FROM generate_series(1, 100000) n",
		`INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes)
		 SELECT p, 1 + n % 5, '2005-01-01'::timestamptz + n * interval '1 hour', CASE WHEN n % 7 < 3 THEN 'healthy' ELSE 'unhealthy' END::outcome,
		        repeat('As seen last time. ', 15) || n
		 FROM generate_series(13, 100012) p, generate_series(1, CASE WHEN p = 1000 THEN 20000 ELSE 10 END) n`,
		`UPDATE patients p SET health_status = i.outcome::text::health_status, last_interaction_at = i.occurred_at
		 FROM (SELECT DISTINCT ON (patient_id) * FROM interactions WHERE patient_id > 12 ORDER BY patient_id, occurred_at DESC, id DESC) i WHERE p.id = i.patient_id`,
		"ALTER TABLE interactions ENABLE TRIGGER ALL, ENABLE ALWAYS TRIGGER interactions_append_only, ENABLE ALWAYS TRIGGER interactions_apply_to_patient",
		"VACUUM ANALYZE",
	} {
		must(conn.Exec(always, statement))
	}
	var deep string
	must(0, conn.QueryRow(always, "SELECT id::text FROM interactions WHERE patient_id = 1000 ORDER BY occurred_at DESC, id DESC OFFSET 10000 LIMIT 1").Scan(&deep))
	store := must(OpenStore(always, as("patient_interactions", conn.Config().ConnString())))
	defer store.Close()
	first := Paging{Limit: 50}
	anyone := func() PatientPath { return PatientPath{13 + mathrand.Int64N(100000)} }
	for _, c := range []struct {
		name      string
		body      string
		path      func() string
		statement func() error
	}{
		{"DocumentAnInteraction", `{"doctor_id": 1, "outcome": "healthy", "notes": "As seen last time."}`,
			func() string { return of(anyone().PatientID) },
			func() error {
				_, err := store.DocumentInteraction(always, NewInteraction{anyone(), Entry{DoctorID: 1, Notes: "As seen last time."}, "healthy"})
				return err
			}},
		{"FirstPageOfAHistory", "", func() string { return of(1000) }, func() error {
			_, err := store.ListInteractions(always, InteractionFilter{PatientPath: PatientPath{1000}, Paging: first})
			return err
		}},
		{"PageOfAHistoryAtDepth10000", "", func() string { return of(1000) + "?cursor=" + deep }, func() error {
			_, err := store.ListInteractions(always, InteractionFilter{PatientPath: PatientPath{1000}, Paging: Paging{50, deep}})
			return err
		}},
		{"PageOfPatients", "", func() string { return "/patients" }, func() error { _, err := store.ListPatients(always, PatientFilter{Paging: first}); return err }},
		{"PageOfUnhealthyPatients", "", func() string { return "/patients?health_status=unhealthy" }, func() error {
			_, err := store.ListPatients(always, PatientFilter{Paging: first, HealthStatus: "unhealthy"})
			return err
		}},
		{"Search", "", func() string { return "/patients?search=abc" }, func() error {
			_, err := store.ListPatients(always, PatientFilter{Paging: first, Search: "abc"})
			return err
		}},
		{"Timeline", "", func() string { return timelineOf(anyone().PatientID) }, func() error { _, err := store.GetTimeline(always, anyone()); return err }},
	} {
		b.Run(c.name+"/http", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if a := send(b, map[bool]string{true: "GET", false: "POST"}[c.body == ""], s.url+c.path(), c.body); a.StatusCode > 201 {
						b.Error(a.body)
					}
				}
			})
		})
		b.Run(c.name+"/pgx", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.statement(); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
