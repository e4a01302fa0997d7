package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
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
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

var (
	server   string        // PostgreSQL, as its superuser sees it
	admin    *pgxpool.Pool // there
	prefix   = "test_" + strings.ToLower(rand.Text()) + "_"
	seeded   = prefix + "seeded" // the template of databases with schema and seed
	product  *service            // what most tests ask, each about patients of its own
	owner    *pgxpool.Pool       // its database, as a second writer sees it
	anything = context.Background()
)

// service is the real handler on a real database, spoken to over HTTP.
type service struct {
	url, database string
	log           safeBuffer
	stop          func()
}

type safeBuffer struct {
	mutex  sync.Mutex
	buffer bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.Write(p)
}

func (b *safeBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.String()
}

// TestMain runs the tests, or the program itself where a test wants it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_PROGRAM") != "" {
		main()
		os.Exit(0)
	}
	flag.Set("test.parallel", "8") // most of them wait for PostgreSQL
	code, err := testAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testAll runs the tests on a server of their own, or in databases of their own on the server of DATABASE_URL.
func testAll(m *testing.M) (code int, err error) {
	cleanUp := func() { dropDatabases() }
	if server = os.Getenv("DATABASE_URL"); server == "" {
		private, err := startPostgres(anything, filepath.Join(os.TempDir(), "patient-interactions-"+rand.Text()), "fsync=off", "max_connections=200")
		if err != nil {
			return 1, err
		}
		cleanUp = func() { private.stop(); os.RemoveAll(private.folder) }
		server = private.url
	}
	cleanUp = sync.OnceFunc(cleanUp)
	defer cleanUp()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() { <-interrupted; cleanUp(); os.Exit(1) }()

	if admin, err = pgxpool.New(anything, server); err != nil {
		return 1, err
	}
	template, err := createDatabase("seeded", "template1")
	if err != nil {
		return 1, err
	}
	if err := load(anything, template); err != nil {
		return 1, err
	}
	database, err := createDatabase("product", seeded)
	if err != nil {
		return 1, err
	}
	if owner, err = pgxpool.New(anything, database+"&pool_max_conns=20"); err != nil {
		return 1, err
	}
	defer owner.Close()
	if product, err = serveOn(asService(database)); err != nil {
		return 1, err
	}
	defer product.stop()
	if code = m.Run(); strings.Contains(product.log.String(), "status=500") {
		return 1, fmt.Errorf("a request was answered 500:\n%s", regexp.MustCompile(`.*status=500.*`).FindString(product.log.String()))
	}
	return code, nil
}

func createDatabase(name, template string) (address string, err error) {
	_, err = admin.Exec(anything, "CREATE DATABASE "+prefix+name+" TEMPLATE "+template)
	return changed(server, func(u *url.URL, q url.Values) { u.Path = "/" + prefix + name; q.Set("application_name", name) }), err
}

func dropDatabases() {
	rows, _ := admin.Query(anything, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", prefix)
	names, _ := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		admin.Exec(anything, "DROP DATABASE "+name+" WITH (FORCE)")
	}
}

func changed(address string, change func(*url.URL, url.Values)) string {
	u, err := url.Parse(address)
	if err != nil {
		panic(err)
	}
	q := u.Query()
	change(u, q)
	u.RawQuery = q.Encode()
	return u.String()
}

// asService is a database's address with the role that schema.sql makes for the service.
func asService(database string) string {
	return changed(database, func(_ *url.URL, q url.Values) { q.Set("role", "patient_interactions") })
}

func serveOn(database string) (*service, error) {
	store, err := OpenStore(anything, database)
	if err != nil {
		return nil, err
	}
	s := &service{database: database}
	web := httptest.NewServer(newHandler(store, slog.New(slog.NewTextHandler(&s.log, nil))))
	s.url, s.stop = web.URL, sync.OnceFunc(func() { web.Close(); store.Close() })
	return s, nil
}

// newService serves a database to one test alone.
func newService(t testing.TB, database string) *service {
	t.Helper()
	s, err := serveOn(database)
	require.NoError(t, err)
	t.Cleanup(s.stop)
	return s
}

// newDatabase makes a database for one test alone.
func newDatabase(t testing.TB, template string) (address string) {
	t.Helper()
	name := strings.ToLower(rand.Text())
	address, err := createDatabase(name, template)
	require.NoError(t, err)
	t.Cleanup(func() { admin.Exec(anything, "DROP DATABASE "+prefix+name+" WITH (FORCE)") })
	return address
}

// The words in which the tests speak HTTP. An address that begins with a slash is one of the product.

type answer struct {
	*http.Response
	body string
}

// browser shows redirects instead of following them.
var browser = http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 100},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// try sends a request, as JSON if it has a body and says nothing else.
func try(t testing.TB, method, address, body string, headers ...string) (a answer, err error) {
	t.Helper()
	if strings.HasPrefix(address, "/") {
		address = product.url + address
	}
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	require.NoError(t, err)
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
	require.Equal(t, "application/problem+json", a.Header.Get("Content-Type"))
	require.Equal(t, "no-store", a.Header.Get("Cache-Control"))
	require.Equal(t, []any{"about:blank", http.StatusText(status), status}, []any{p.Type, p.Title, p.Status})
	require.NotEmpty(t, p.Detail)
	require.NotRegexp(t, leak, a.body)
	require.Equal(t, status == 503, a.Header.Get("Retry-After") != "")
	return p
}

func refused(t testing.TB, status int, method, address, body string, headers ...string) Problem {
	t.Helper()
	return problem(t, status, send(t, method, address, body, headers...))
}

// faults are the fields that a problem names.
func faults(p Problem) (fields []string) {
	for _, e := range p.Errors {
		fields = append(fields, e.Field)
	}
	return fields
}

func of(patient int64) string { return fmt.Sprintf("/patients/%d/interactions", patient) }
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
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return string(raw)
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

func names(patients []Patient) []string {
	all := []string{}
	for _, p := range patients {
		all = append(all, p.Name)
	}
	return all
}

// everyPage reads a list to its end. The address has a query already; after each page it does the next thing.
func everyPage[T any](t testing.TB, address string, meanwhile ...func()) (items []T) {
	t.Helper()
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

func stateOf(t testing.TB, patient int64) Patient {
	t.Helper()
	return read[Patient](t, fmt.Sprintf("/patients/%d", patient))
}

// newPatient registers a patient, born on 1980-01-01.
func newPatient(t testing.TB, name ...string) (id int64) {
	t.Helper()
	query := "INSERT INTO patients (name, birth_date) VALUES ($1, '1980-01-01') RETURNING id"
	require.NoError(t, owner.QueryRow(anything, query, cmp.Or(strings.Join(name, ""), t.Name())).Scan(&id))
	return id
}

func execute(t testing.TB, statement string, args ...any) {
	t.Helper()
	_, err := owner.Exec(anything, statement, args...)
	require.NoError(t, err)
}

// Lists

func TestDoctorsAreListedByNameThenID(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	execute(t, "INSERT INTO doctors (name, specialty) SELECT n, $1 FROM unnest(ARRAY['Dr. Zorn', 'Dr. Ärmel', 'Dr. Arm', 'Dr. Arm', 'Dr. Ast']) n", tag)
	var got []Doctor
	for _, d := range everyPage[Doctor](t, "/doctors?limit=2") {
		if d.Specialty == tag {
			got = append(got, d)
		}
	}
	first := got[0].ID - 2 // of the five
	require.Equal(t, []Doctor{{first + 2, "Dr. Arm", tag}, {first + 3, "Dr. Arm", tag}, {first + 1, "Dr. Ärmel", tag}, {first + 4, "Dr. Ast", tag}, {first, "Dr. Zorn", tag}}, got)
}

func TestPatientsAreListedByUnicodesRootCollationThenID(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	want := []string{"arzt", "Arzt", "Ärzte", "Azur", "Łuk", "Özil", "ozon", "Zahn", "Zahn", "Żak"}
	same := map[string]int64{}
	for _, i := range []int{9, 7, 1, 8, 5, 0, 3, 2, 6, 4} {
		same[want[i]] = newPatient(t, want[i]+" "+tag) // of equal names the later one's
	}
	for i, name := range want {
		want[i] = name + " " + tag
	}
	for _, limit := range []string{"1", "3", "10", "1000"} {
		got := everyPage[Patient](t, "/patients?search="+tag+"&limit="+limit)
		require.Equal(t, want, names(got), limit)
		require.Equal(t, same["Zahn"], got[8].ID, "the same name, the higher id")
	}
}

func TestPatientsRegisteredOrChangedMeanwhileNeitherRepeatNorHideAnother(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	var ids []int64
	for _, name := range []string{"B", "D", "F", "H"} {
		ids = append(ids, newPatient(t, name+tag))
	}
	got := everyPage[Patient](t, "/patients?limit=1&health_status=unknown&search="+tag,
		func() { newPatient(t, "A"+tag); newPatient(t, "C"+tag) }, // before and after the cursor
		func() {},
		func() { documents(t, ids[1], "healthy", 1) }, // whose patient leaves the list
	)
	require.Equal(t, []string{"B" + tag, "C" + tag, "D" + tag, "F" + tag, "H" + tag}, names(got))
}

func TestSearchFindsAnyPartOfANameInAnyCase(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	for _, name := range []string{"Mesut Özil", "100%", "1000", "a_b", "axb", `c\d`, "cd", "Jo Ann", "JoAnn", "Straße", "Σίσυφος"} {
		newPatient(t, tag+name+strings.ToLower(tag))
	}
	for search, want := range map[string][]string{
		tag + "Mesut":                 {"Mesut Özil"},
		"UT ÖZIL" + tag:               {"Mesut Özil"},
		"özil" + strings.ToLower(tag): {"Mesut Özil"},
		tag + "1":                     {"100%", "1000"},
		"0%" + tag:                    {"100%"},
		tag + "a_b":                   {"a_b"},
		tag + `c\d`:                   {`c\d`},
		tag + "%d":                    {},
		tag + "jo ":                   {"Jo Ann"},
		" ann" + tag:                  {"Jo Ann"},
		tag + "JO":                    {"Jo Ann", "JoAnn"},
		tag + " ":                     {},
		tag + "STRAß":                 {"Straße"},
		tag + "ΣΊΣΥ":                  {"Σίσυφος"},
	} {
		for i := range want {
			want[i] = tag + want[i] + strings.ToLower(tag)
		}
		require.ElementsMatch(t, want, names(read[PageOf[Patient]](t, "/patients?search="+url.QueryEscape(search)).Items), search)
	}
	require.Empty(t, read[PageOf[Patient]](t, "/patients?search="+strings.Repeat("%C3%84", 100)).Items, "100 characters")
	require.Equal(t, []string{"search"}, faults(refused(t, 400, "GET", "/patients?search="+strings.Repeat("%C3%84", 101), "")))
}

func TestPatientsAreFilteredByStateAndDoctorAndNameTogether(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	well, ill, moved, struck := newPatient(t, "a"+tag), newPatient(t, "b"+tag), newPatient(t, "c"+tag), newPatient(t, "d"+tag)
	documents(t, well, "healthy", 1, "doctor_id", 2)
	documents(t, ill, "healthy", 1, "doctor_id", 2)
	documents(t, ill, "unhealthy", 2, "doctor_id", 3)
	amends(t, documents(t, moved, "healthy", 1, "doctor_id", 2), "unhealthy", "doctor_id", 3)
	amends(t, documents(t, struck, "healthy", 1, "doctor_id", 2), "entered_in_error", "doctor_id", 3)
	for filter, want := range map[string]string{
		"":                                    "abcd",
		"health_status=healthy":               "a",
		"health_status=unhealthy":             "bc",
		"health_status=unknown":               "d",
		"doctor_id=2":                         "ab",
		"doctor_id=3":                         "bc",
		"doctor_id=4":                         "",
		"doctor_id=9223372036854775807":       "",
		"doctor_id=2&health_status=unhealthy": "b",
		"doctor_id=3&health_status=healthy":   "",
		"doctor_id=&health_status=&limit=":    "abcd",
		"health_status=unhealthy&cursor=" + fmt.Sprint(ill): "c",
	} {
		got := names(read[PageOf[Patient]](t, "/patients?search="+tag+"&"+filter).Items)
		require.Equal(t, want, strings.ReplaceAll(strings.Join(got, ""), tag, ""), filter)
	}
}

func TestPatientIsReadWithThePresentState(t *testing.T) {
	t.Parallel()
	patient := newPatient(t, "Zoë")
	require.JSONEq(t, fmt.Sprintf(`{"id": %d, "name": "Zoë", "birth_date": "1980-01-01", "health_status": "unknown", "last_interaction_at": null}`, patient),
		send(t, "GET", fmt.Sprintf("/patients/%d", patient), "").body)
	documents(t, patient, "unhealthy", 5)
	require.JSONEq(t, fmt.Sprintf(`{"id": %d, "name": "Zoë", "birth_date": "1980-01-01", "health_status": "unhealthy", "last_interaction_at": "2024-01-05T09:00:00Z"}`, patient),
		send(t, "GET", fmt.Sprintf("/patients/%d", patient), "").body)
}

func TestHistoryShowsNewestFirstAndOfOneInstantTheHighestID(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	a, b, c, d, e := documents(t, patient, "healthy", 3), documents(t, patient, "unhealthy", 4), documents(t, patient, "healthy", 4), documents(t, patient, "healthy", 1), documents(t, patient, "healthy", 4)
	for _, limit := range []string{"1", "2", "3", "5", "1000"} {
		require.Equal(t, ids(e, c, b, a, d), ids(everyPage[Interaction](t, of(patient)+"?limit="+limit)...), limit)
	}
}

func TestPageHoldsFiftyUnlessALimitSaysOtherwise(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	execute(t, "INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes) SELECT $1, 1, '2024-01-01', 'healthy', n::text FROM generate_series(1, 1001) n", patient)
	for limit, want := range map[string]int{"": 50, "1": 1, "51": 51, "1000": 1000} {
		page := read[PageOf[Interaction]](t, of(patient)+"?limit="+limit)
		require.Len(t, page.Items, want)
		require.NotNil(t, page.NextCursor)
	}
	page := read[PageOf[Interaction]](t, of(patient)+"?limit=1000")
	last := read[PageOf[Interaction]](t, of(patient)+"?limit=1&cursor="+*page.NextCursor) // another limit, the same place
	require.Equal(t, "1", last.Items[0].Notes)
	require.Nil(t, last.NextCursor, "a page that is just full, and the last one")
	for _, limit := range []string{"0", "1001", "-1", "1.5", "x", "99999999999999999999"} {
		for _, list := range []string{"/doctors", "/patients", of(patient)} {
			require.Equal(t, []string{"limit"}, faults(refused(t, 400, "GET", list+"?limit="+limit, "")))
		}
	}
}

func TestEntriesWrittenOrAmendedMeanwhileNeitherRepeatNorHideAnother(t *testing.T) {
	t.Parallel()
	for filter, all := range map[string]bool{"": false, "&include_amended=true": true} {
		patient := newPatient(t)
		var e []Interaction
		for day := range 7 {
			e = append(e, documents(t, patient, "healthy", day))
		}
		var late Interaction
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
		want := ids(e[6], e[5], late, e[4], e[2], e[1], e[0])
		if all {
			want = ids(e[6], e[5], late, e[4], e[3], e[2], e[1], e[0])
		}
		require.Equal(t, want, ids(got...), filter)
	}
}

func TestCursorIsAPlaceInItsOwnList(t *testing.T) {
	t.Parallel()
	patient, other := newPatient(t), newPatient(t)
	first, second := documents(t, patient, "healthy", 1), documents(t, patient, "unhealthy", 2)
	elsewhere := documents(t, other, "healthy", 3)
	after := func(id any) []int64 { return historyOf(t, patient, fmt.Sprintf("cursor=%v", id)) }
	require.Equal(t, ids(first), after(second.ID))
	require.Equal(t, ids(first), historyOf(t, patient, fmt.Sprintf("outcome=healthy&cursor=%d", second.ID)), "one that the filter hides")
	for _, id := range []any{first.ID, elsewhere.ID, int64(1), "9223372036854775807", "9999999999999999999"} {
		require.Empty(t, after(id), id)
	}
	require.Empty(t, read[PageOf[Doctor]](t, "/doctors?cursor=9223372036854775807").Items)
	require.Empty(t, read[PageOf[Patient]](t, "/patients?cursor=9223372036854775807").Items)
	for _, cursor := range []string{"x", "0", "-1", "01", "1.5", "%2B1", "1%20", "10000000000000000000000"} {
		for _, list := range []string{"/doctors", "/patients", of(patient)} {
			require.Equal(t, []string{"cursor"}, faults(refused(t, 400, "GET", list+"?cursor="+cursor, "")), cursor)
		}
	}
}

func TestHistoryIsFilteredByOutcomeDoctorAndTime(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	a := documents(t, patient, "healthy", 1)
	b := documents(t, patient, "unhealthy", 2, "doctor_id", 2)
	c := documents(t, patient, "healthy", 3, "doctor_id", 2)
	d := documents(t, patient, "unhealthy", 4)
	e := amends(t, d, "entered_in_error", "doctor_id", 3)
	f := amends(t, b, "healthy", "doctor_id", 3)
	for filter, want := range map[string][]int64{
		"": ids(c, f, a),
		"outcome=&doctor_id=&from=&to=&include_amended=&cursor=&limit=": ids(c, f, a),
		"include_amended=false":                               ids(c, f, a),
		"include_amended=true":                                ids(e, d, c, f, b, a),
		"outcome=healthy":                                     ids(c, f, a),
		"outcome=unhealthy":                                   ids(),
		"outcome=unhealthy&include_amended=true":              ids(d, b),
		"outcome=entered_in_error":                            ids(),
		"outcome=entered_in_error&include_amended=true":       ids(e),
		"doctor_id=2":                                         ids(c),
		"doctor_id=2&include_amended=true":                    ids(c, b),
		"doctor_id=99":                                        ids(),
		"from=2024-01-02T09:00:00Z":                           ids(c, f),
		"to=2024-01-03T09:00:00Z":                             ids(f, a),
		"from=2024-01-02T09:00:00Z&to=2024-01-03T09:00:00Z":   ids(f),
		"from=2024-01-02T10:00:00.000001%2B01:00":             ids(c),
		"from=2024-01-03T09:00:00Z&to=2024-01-03T09:00:00Z":   ids(),
		"from=2024-01-04T09:00:00Z&to=2024-01-01T09:00:00Z":   ids(),
		"outcome=healthy&doctor_id=1&to=2024-01-02T09:00:00Z": ids(a),
	} {
		require.Equal(t, want, historyOf(t, patient, filter), filter)
	}
}

func TestAmendedEntryIsMarkedWithWhoReplacedItWhereverItIsShown(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	first := documents(t, patient, "healthy", 1)
	second := amends(t, first, "unhealthy")
	require.Equal(t, &first.ID, second.Amends)
	require.Nil(t, second.AmendedBy)
	first.AmendedBy = &second.ID
	require.Equal(t, first, read[Interaction](t, entryAt(patient, first.ID)))
	require.Equal(t, second, read[Interaction](t, entryAt(patient, second.ID)))
	require.Equal(t, []Interaction{second, first}, read[PageOf[Interaction]](t, of(patient)+"?include_amended=true").Items)
	require.Equal(t, []Interaction{second}, read[PageOf[Interaction]](t, of(patient)).Items)
}

func TestPatientWithoutInteractionsHasEmptyListsThatAreNotNull(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	for address, want := range map[string]string{
		of(patient):                                   `{"items": [], "next_cursor": null}`,
		of(patient) + "?include_amended=true":         `{"items": [], "next_cursor": null}`,
		"/patients?search=" + rand.Text():             `{"items": [], "next_cursor": null}`,
		"/doctors?cursor=9223372036854775807":         `{"items": [], "next_cursor": null}`,
		fmt.Sprintf("/patients/%d/timeline", patient): `{"health_status": "unknown", "items": []}`,
	} {
		require.JSONEq(t, want, send(t, "GET", address, "").body, address)
	}
}

// Health

func TestHealthStatusIsTheOutcomeOfTheLatestCurrentInteraction(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	is := func(status HealthStatus, at *time.Time) {
		t.Helper()
		p := stateOf(t, patient)
		require.Equal(t, status, p.HealthStatus)
		require.Equal(t, at, p.LastInteractionAt)
		require.Equal(t, status, read[Timeline](t, fmt.Sprintf("/patients/%d/timeline", patient)).HealthStatus)
	}
	is("unknown", nil)
	documents(t, patient, "healthy", 2)
	is("healthy", new(on(2)))
	documents(t, patient, "unhealthy", 1)
	is("healthy", new(on(2))) // that was a late entry
	tie := documents(t, patient, "unhealthy", 2)
	is("unhealthy", new(on(2))) // of one instant the highest id
	moved := amends(t, tie, "unhealthy", "occurred_at", on(3))
	is("unhealthy", new(on(3)))
	amends(t, moved, "entered_in_error")
	is("healthy", new(on(2)))
}

func TestPatientWhoseOnlyEntryIsStruckOutIsUnknownUntilItComesBack(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	first := documents(t, patient, "unhealthy", 1)
	struck := amends(t, first, "entered_in_error")
	require.Equal(t, first.OccurredAt, struck.OccurredAt, "an amendment keeps the instant unless it names another")
	require.Equal(t, HealthStatus("unknown"), stateOf(t, patient).HealthStatus)
	require.Nil(t, stateOf(t, patient).LastInteractionAt)
	require.Empty(t, historyOf(t, patient, ""))
	back := amends(t, struck, "healthy", "occurred_at", on(7))
	require.Equal(t, HealthStatus("healthy"), stateOf(t, patient).HealthStatus)
	require.Equal(t, ids(back), historyOf(t, patient, ""))
	require.Equal(t, ids(back, struck, first), historyOf(t, patient, "include_amended=true"))
}

func TestTimelineJoinsConsecutiveOutcomesToPeriods(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
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
		{"outcome": "healthy",   "from": "2024-01-06T09:00:00Z", "to": null, "interactions": 2}]}`,
		send(t, "GET", fmt.Sprintf("/patients/%d/timeline", patient), "").body)
}

// Amendments

func TestOnlyTheNewestOfAChainCanBeAmended(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	first := documents(t, patient, "healthy", 1)
	second := amends(t, first, "unhealthy")
	third := amends(t, second, "healthy")
	for amended, by := range map[Interaction]int64{first: second.ID, second: third.ID} {
		p := refused(t, 409, "POST", amending(amended), entry())
		require.Contains(t, p.Detail, fmt.Sprintf("by interaction %d", by))
	}
	require.Equal(t, ids(third), historyOf(t, patient, ""))
	require.Equal(t, ids(third, second, first), historyOf(t, patient, "include_amended=true"))
}

func TestEntryOfAnotherPatientIsNotThere(t *testing.T) {
	t.Parallel()
	patient, other := newPatient(t), newPatient(t)
	i := documents(t, other, "healthy", 1)
	refused(t, 404, "GET", entryAt(patient, i.ID), "")
	refused(t, 404, "POST", entryAt(patient, i.ID)+"/amendments", entry())
	require.Equal(t, ids(i), historyOf(t, other, "include_amended=true"))
	require.Empty(t, historyOf(t, patient, "include_amended=true"))
}

func TestOfAmendmentsAtOnceOneWinsAndTheOthersLearnWhich(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	first := documents(t, patient, "healthy", 1)
	answers := atOnce(10, func() answer { return send(t, "POST", amending(first), entry("outcome", "unhealthy")) })
	all := historyOf(t, patient, "include_amended=true")
	require.Len(t, all, 2)
	won := 0
	for _, a := range answers {
		if a.StatusCode == 201 {
			won++
		} else {
			require.Contains(t, problem(t, 409, a).Detail, fmt.Sprintf("by interaction %d", all[0]))
		}
	}
	require.Equal(t, 1, won)
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

func TestManyWritersOfOnePatientDisturbNobodyWhoPages(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	var old []int64
	for day := range 10 {
		old = append(ids(documents(t, patient, "healthy", day)), old...)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		atOnce(8, func() any {
			for i := range 8 {
				documents(t, patient, "unhealthy", i)
			}
			return nil
		})
	}()
	for reading := true; reading; {
		select {
		case <-written:
			reading = false // once more, with all of it
		default:
		}
		var seen []int64
		last := Interaction{OccurredAt: on(31)}
		for _, i := range everyPage[Interaction](t, of(patient)+"?limit=7") {
			require.True(t, i.OccurredAt.Before(last.OccurredAt) || i.OccurredAt.Equal(last.OccurredAt) && i.ID < last.ID)
			if last = i; i.Outcome == "healthy" {
				seen = append(seen, i.ID)
			}
		}
		require.Equal(t, old, seen)
	}
	require.Len(t, historyOf(t, patient, "limit=1000"), 10+64)
	require.Equal(t, HealthStatus("healthy"), stateOf(t, patient).HealthStatus, "day 9 is the last")
}

// Retries

func TestRepeatedRequestAnswersWithTheEntryFirstMadeAsItStandsNow(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
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
	t.Parallel()
	patient := newPatient(t)
	first := write(t, of(patient), entry(), "Idempotency-Key", "k")
	second := write(t, amending(first), entry(), "Idempotency-Key", "a")
	for _, c := range []struct{ name, address, key, body string }{
		{"another doctor", of(patient), "k", entry("doctor_id", 2)},
		{"another outcome", of(patient), "k", entry("outcome", "unhealthy")},
		{"other notes", of(patient), "k", entry("notes", "seen.")},
		{"another time", of(patient), "k", entry("occurred_at", first.OccurredAt.Add(-time.Microsecond))},
		{"another operation", amending(first), "k", entry()},
		{"another operation", of(patient), "a", entry()},
		{"another entry to amend", amending(second), "a", entry()},
	} {
		require.Equal(t, []string{"Idempotency-Key"}, faults(refused(t, 422, "POST", c.address, c.body, "Idempotency-Key", c.key)), c.name)
	}
	require.Equal(t, ids(second, first), historyOf(t, patient, "include_amended=true"))
	require.NotEqual(t, first.ID, write(t, of(newPatient(t)), entry(), "Idempotency-Key", "k").ID, "another patient's keys are others")
}

func TestKeyIsVisibleASCIIOfOneTo255Characters(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	made := write(t, of(patient), entry(), "Idempotency-Key", strings.Repeat("!~", 127)+"k")
	for _, key := range []string{"", strings.Repeat("k", 256), "schlüssel", "a b", "a\tb", "\xff"} {
		require.Equal(t, []string{"Idempotency-Key"}, faults(refused(t, 400, "POST", of(patient), entry(), "Idempotency-Key", key)), key)
	}
	refused(t, 400, "POST", of(patient), entry(), "Idempotency-Key", "k", "Idempotency-Key", "k")
	require.Equal(t, ids(made), historyOf(t, patient, ""))
}

func TestRefusedRequestDoesNotUseItsKeyUp(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	first := documents(t, patient, "healthy", 1)
	second := amends(t, first, "healthy")
	refused(t, 422, "POST", of(patient), entry("doctor_id", 99), "Idempotency-Key", "k")
	refused(t, 422, "POST", of(patient), entry("notes", ""), "Idempotency-Key", "k")
	refused(t, 404, "POST", entryAt(patient, 1)+"/amendments", entry(), "Idempotency-Key", "k")
	refused(t, 409, "POST", amending(first), entry(), "Idempotency-Key", "k")
	write(t, amending(second), entry(), "Idempotency-Key", "k")
}

func TestTwentyCopiesAtOnceMakeOneEntry(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	first := documents(t, patient, "healthy", 1)
	for n, address := range []string{of(patient), amending(first)} {
		made := atOnce(20, func() Interaction {
			return write(t, address, entry("outcome", "unhealthy"), "Idempotency-Key", address)
		})
		for _, i := range made {
			require.Equal(t, made[0], i)
		}
		require.Len(t, historyOf(t, patient, "include_amended=true"), n+2)
	}
}

// Limits of what is written

func TestNotesAreKeptAsSentButForWhiteSpaceAround(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	for sent, want := range map[string]string{
		" \t\r\n\v\f\u0085\u00a0\u1680\u2003\u2028\u3000x \n y\u3000\u2029\u2000\u00a0\u0085\f\v\n ": "x \n y",
		`<b>&amp; "quoted" \ud800 %s 'x'; --`:                                                        `<b>&amp; "quoted" \ud800 %s 'x'; --`,
		"\u200bzero width\ufeff":                                                                     "\u200bzero width\ufeff",
	} {
		require.Equal(t, want, write(t, of(patient), entry("notes", sent)).Notes)
	}
	for letter := range strings.SplitSeq(`tnvfrbx0\`, "") {
		made := write(t, of(patient), entry("notes", letter+" "+letter))
		require.Equal(t, letter+" "+letter, read[Interaction](t, entryAt(patient, made.ID)).Notes)
	}
}

func TestNotesHold10000CharactersHoweverTheyAreEscaped(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	for character, escaped := range map[string]string{"x": "x", "ä": `\u00e4`, "😀": `\uD83d\ude00`} {
		sent := func(n int) string {
			return fmt.Sprintf(`{"doctor_id": 1, "outcome": "healthy", "notes": "  %s  "}`, strings.Repeat(escaped, n))
		}
		require.Equal(t, strings.Repeat(character, 10_000), write(t, of(patient), sent(10_000)).Notes)
		require.Equal(t, []string{"notes"}, faults(refused(t, 422, "POST", of(patient), strings.Replace(sent(10_000), "  ", character, 1))))
	}
}

func TestBodyHoldsAtMost128KiB(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	body := entry()
	write(t, of(patient), body+strings.Repeat(" ", 131_072-len(body)))
	refused(t, 413, "POST", of(patient), body+strings.Repeat(" ", 131_073-len(body)))
	refused(t, 413, "POST", of(patient), strings.Repeat("{", 200_000))
}

func TestInteractionOccursBetweenBirthAndFiveMinutesAhead(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	for _, c := range []struct {
		name string
		at   any
		want string // or refused
	}{
		{"a little ahead", time.Now().Add(5*time.Minute - 10*time.Second).UTC().Truncate(time.Second).Format(time.RFC3339), "same"},
		{"too far ahead", time.Now().Add(5*time.Minute + 10*time.Second), ""},
		{"the first instant", "1980-01-01T00:00:00Z", "1980-01-01T00:00:00Z"},
		{"the first instant, written elsewhere", "1979-12-31T22:30:00-01:30", "1980-01-01T00:00:00Z"},
		{"before birth", "1979-12-31T23:59:59.999999Z", ""},
		{"before birth, the date alone is not", "1980-01-01T01:00:00+02:00", ""},
		{"before birth by a century", "0001-01-01T00:00:00Z", ""},
		{"finer than a microsecond", "2024-05-13T11:30:00.1234569+02:00", "2024-05-13T09:30:00.123456Z"},
	} {
		if c.want == "" {
			require.Equal(t, []string{"occurred_at"}, faults(refused(t, 422, "POST", of(patient), entry("occurred_at", c.at))), c.name)
			continue
		}
		a := send(t, "POST", of(patient), entry("occurred_at", c.at))
		require.Equal(t, 201, a.StatusCode, c.name)
		require.Contains(t, a.body, fmt.Sprintf(`"occurred_at":%q`, strings.Replace(c.want, "same", fmt.Sprint(c.at), 1)))
	}
}

func TestInteractionOccursNowUnlessItSaysWhen(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	before := time.Now().Truncate(time.Microsecond)
	made := write(t, of(patient), entry("occurred_at", nil))
	require.WithinRange(t, made.OccurredAt, before, time.Now())
	require.WithinDuration(t, time.Now(), made.RecordedAt, time.Minute)
	require.Regexp(t, `"recorded_at":"[^"]+Z"`, send(t, "GET", entryAt(patient, made.ID), "").body)
	execute(t, "UPDATE patients SET birth_date = current_date + 2 WHERE id = $1", patient)
	require.Equal(t, []string{"occurred_at"}, faults(refused(t, 422, "POST", of(patient), entry())), "not born yet")
	require.Equal(t, []string{"occurred_at"}, faults(refused(t, 422, "POST", amending(made), entry())))
}

// Requests that are refused

func TestBodyThatCannotBeReadOrMayNotBeIsRefused(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	with := func(fields string) string {
		return `{"doctor_id": 1, "outcome": "healthy", "notes": "seen", ` + fields + `}`
	}
	for _, c := range []struct {
		name, body string
		status     int
		faults     string
	}{
		{"nothing but a blank", " ", 400, ""},
		{"broken JSON", `{"notes": "x"`, 400, ""},
		{"no JSON at all", "notes=x", 400, ""},
		{"an array", "[]", 400, "body"},
		{"a text", `"x"`, 400, "body"},
		{"an unknown field", with(`"colour": 1`), 400, ""},
		{"a field of the path", with(`"patient_id": 1`), 400, ""},
		{"a field of the header", with(`"IdempotencyKey": "k"`), 400, ""},
		{"another body after it", entry() + entry(), 400, ""},
		{"a bracket after it", entry() + "]", 400, ""},
		{"a doctor in quotes", with(`"doctor_id": "1"`), 400, "doctor_id"},
		{"a fraction of a doctor", with(`"doctor_id": 1.0`), 400, "doctor_id"},
		{"a doctor beyond all numbers", with(`"doctor_id": 9223372036854775808`), 400, "doctor_id"},
		{"an outcome that is true", with(`"outcome": true`), 400, "outcome"},
		{"notes that are a number", with(`"notes": 1`), 400, "notes"},
		{"notes that are an object", with(`"notes": {}`), 400, "notes"},
		{"a time that is a number", with(`"occurred_at": 1`), 400, "occurred_at"},
		{"a time that is none", with(`"occurred_at": "yesterday"`), 400, ""},
		{"a time without an offset", with(`"occurred_at": "2024-05-13T09:30:00"`), 400, ""},
		{"a date without a time", with(`"occurred_at": "2024-05-13"`), 400, ""},
		{"a day that is none", with(`"occurred_at": "2024-02-30T09:30:00Z"`), 400, ""},
		{"the first half of a pair", with(`"notes": "\uD83D"`), 400, ""},
		{"the second half of a pair", with(`"notes": "\ude00"`), 400, ""},
		{"two first halves", with(`"notes": "\ud83d\ud83d"`), 400, ""},
		{"half a pair before an escape", with(`"notes": "\ud83d\n"`), 400, ""},
		{"half a pair after a backslash", with(`"notes": "\\\ud83d"`), 400, ""},
		{"half a pair in a name", with(`"\ud83d": 1`), 400, ""},
		{"bytes that are not UTF-8", with("\"notes\": \"\xff\""), 400, ""},
		{"a surrogate in bytes", with("\"notes\": \"\xed\xa0\xbd\""), 400, ""},
		{"nothing", "{}", 422, "doctor_id notes outcome"},
		{"null", "null", 422, "doctor_id notes outcome"},
		{"fields that are null", `{"doctor_id": null, "outcome": null, "notes": null, "occurred_at": null}`, 422, "doctor_id notes outcome"},
		{"faults everywhere", `{"doctor_id": -1, "outcome": "ill", "notes": "\u3000", "occurred_at": "2999-01-01T00:00:00Z"}`, 422, "doctor_id notes occurred_at outcome"},
		{"a NUL in notes", entry("notes", "a\x00b"), 422, "notes"},
		{"notes of white space", entry("notes", " \n\u2003"), 422, "notes"},
		{"an outcome in capitals", entry("outcome", "Healthy"), 422, "outcome"},
		{"a strike-out that amends nothing", entry("outcome", "entered_in_error"), 422, "outcome"},
		{"a doctor who does not exist", entry("doctor_id", 9223372036854775807), 422, "doctor_id"},
		{"an unknown doctor before birth", entry("doctor_id", 99, "occurred_at", on(-99999)), 422, "doctor_id occurred_at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := refused(t, c.status, "POST", of(patient), c.body)
			named := faults(p)
			slices.Sort(named)
			require.Equal(t, c.faults, strings.Join(named, " "))
			for _, e := range p.Errors {
				require.NotEmpty(t, e.Detail)
			}
		})
	}
	require.Empty(t, historyOf(t, patient, "include_amended=true"), "a refused request writes nothing")
}

func TestFieldsInOtherCaseAndRepeatedOnesAreTaken(t *testing.T) {
	t.Parallel()
	made := write(t, of(newPatient(t)), `{"notes": "first", "DOCTOR_ID": 1, "Outcome": "unhealthy", "noteſ": "\ud83d\ude00\\ud83d", "doctor_id": 2}`)
	require.Equal(t, []any{int64(2), Outcome("unhealthy"), `😀\ud83d`}, []any{made.Doctor.ID, made.Outcome, made.Notes})
}

func TestAddressThatCannotBeReadIsRefused(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	one := entryAt(patient, documents(t, patient, "healthy", 1).ID)
	timeline := fmt.Sprintf("/patients/%d/timeline", patient)
	for _, operation := range []string{"GET /doctors", "GET /patients", "GET " + strings.TrimSuffix(timeline, "/timeline"), "GET " + timeline, "GET " + of(patient), "GET " + one, "POST " + of(patient), "POST " + one + "/amendments"} {
		method, path, _ := strings.Cut(operation, " ")
		body := map[string]string{"POST": entry()}[method]
		for query, fault := range map[string]string{"colour=1": "colour", "colour=": "colour", "Limit=1": "Limit", "a=%zz": "", "a=1;b=2": ""} {
			require.Equal(t, fault, strings.Join(faults(refused(t, 400, method, path+"?"+query, body)), " "), operation+query)
		}
	}
	for query, lists := range map[string][]string{
		"limit=1&limit=1":                 {"/doctors", "/patients", of(patient)},
		"limit=&limit=":                   {"/doctors", "/patients", of(patient)},
		"cursor=1&cursor=1":               {"/doctors", "/patients", of(patient)},
		"doctor_id=x":                     {"/patients", of(patient)},
		"doctor_id=0":                     {"/patients", of(patient)},
		"doctor_id=9223372036854775808":   {"/patients", of(patient)},
		"doctor_id=1&doctor_id=2":         {"/patients", of(patient)},
		"search=%00":                      {"/patients"},
		"search=%ff":                      {"/patients"},
		"search=a&search=b":               {"/patients"},
		"health_status=ill":               {"/patients"},
		"health_status=entered_in_error":  {"/patients"},
		"outcome=unknown":                 {of(patient)},
		"outcome=healthy&outcome=healthy": {of(patient)},
		"include_amended=1":               {of(patient)},
		"include_amended=True":            {of(patient)},
		"from=2024-01-01":                 {of(patient)},
		"from=2024-01-01T00:00:00":        {of(patient)},
		"from=2024-01-01T00:00:00+01:00":  {of(patient)}, // a plus sign is a blank
		"from=&from=":                     {of(patient)},
		"to=tomorrow":                     {of(patient)},
		"to=2024-01-01T25:00:00Z":         {of(patient)},
	} {
		for _, list := range lists {
			field, _, _ := strings.Cut(query, "=")
			require.Equal(t, []string{field}, faults(refused(t, 400, "GET", list+"?"+query, "")), list+query)
		}
	}
	require.ElementsMatch(t, []string{"limit", "cursor", "x"}, faults(refused(t, 400, "GET", "/doctors?limit=0&cursor=x&x=1", "")), "all at once")
	for _, id := range []string{"x", "0", "-1", "1.5", "9223372036854775808", "%00", "%20", "1%2F"} {
		for _, path := range []string{"/patients/" + id, "/patients/" + id + "/timeline", "/patients/" + id + "/interactions", of(patient) + "/" + id} {
			refused(t, 400, "GET", path, "")
		}
		refused(t, 400, "POST", "/patients/"+id+"/interactions", entry())
		refused(t, 400, "POST", of(patient)+"/"+id+"/amendments", entry())
	}
}

func TestWhatDoesNotExistIsNotFound(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	for _, nobody := range []string{"/patients/9223372036854775807", "/patients/999999"} {
		for _, path := range []string{nobody, nobody + "/timeline", nobody + "/interactions", nobody + "/interactions?include_amended=true", nobody + "/interactions/1", of(patient) + "/9223372036854775807"} {
			refused(t, 404, "GET", path, "")
		}
		refused(t, 404, "POST", nobody+"/interactions", entry())
		refused(t, 404, "POST", nobody+"/interactions", entry("doctor_id", 99))
		refused(t, 404, "POST", nobody+"/interactions/1/amendments", entry())
	}
	refused(t, 404, "POST", of(patient)+"/9223372036854775807/amendments", entry())
	for _, path := range []string{"/nothing", "/patients/", "/patients/1/", "/patients/1/nothing", "/doctors/1", "/index.html", "/openapi.json/"} {
		refused(t, 404, "GET", path, "")
	}
}

func TestMethodThatAPathDoesNotTakeIsRefusedWithThoseThatItTakes(t *testing.T) {
	t.Parallel()
	for path, allowed := range map[string]string{
		"/doctors": "GET, HEAD", "/patients": "GET, HEAD", "/patients/1": "GET, HEAD", "/patients/1/timeline": "GET, HEAD", "/patients/1/interactions": "GET, HEAD, POST",
		"/patients/1/interactions/1": "GET, HEAD", "/patients/1/interactions/1/amendments": "POST", "/livez": "GET, HEAD", "/readyz": "GET, HEAD", "/openapi.json": "GET, HEAD", "/": "GET, HEAD", "/docs/": "GET, HEAD",
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

func TestHeadAnswersAsGetWithoutABody(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/patients/1", "/patients/1/interactions", "/patients/999999", "/livez", "/openapi.json", "/docs/", "/"} {
		get, head := send(t, "GET", path, ""), send(t, "HEAD", path, "")
		require.Empty(t, head.body)
		require.Equal(t, get.StatusCode, head.StatusCode)
		for _, header := range []string{"Content-Type", "Cache-Control", "Location", "Content-Security-Policy"} {
			require.Equal(t, get.Header[header], head.Header[header], path)
		}
	}
}

func TestBodyMustSayThatItIsJSON(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/json; charset", "multipart/form-data"} {
		refused(t, 415, "POST", of(patient), entry(), "Content-Type", kind)
	}
	require.Empty(t, historyOf(t, patient, ""))
	write(t, of(patient), entry(), "Content-Type", "Application/JSON; charset=utf-8")
}

func TestOtherWebPageMayReadButNotWrite(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://example.org"}, {"Origin", "null"}} {
		refused(t, 403, "POST", of(patient), entry(), header...)
		require.Equal(t, 200, send(t, "GET", of(patient), "", header...).StatusCode)
	}
	require.Empty(t, historyOf(t, patient, ""))
	for _, header := range [][]string{{"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Site", "none"}, {"Origin", product.url}} {
		write(t, of(patient), entry(), header...)
	}
}

func TestEveryAnswerIsKeptFromCachesAndFromOtherPages(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, path := range []string{"/doctors", "/patients", "/patients/1", "/patients/1/timeline", "/patients/1/interactions", "/patients/1/interactions/1", "/livez", "/readyz", "/openapi.json", "/nothing", "/patients/x"} {
		a := send(t, "GET", path, "")
		require.Equal(t, "no-store", a.Header.Get("Cache-Control"), path)
		require.Equal(t, "nosniff", a.Header.Get("X-Content-Type-Options"), path)
		require.Equal(t, "default-src 'none'; frame-ancestors 'none'", a.Header.Get("Content-Security-Policy"), path)
		require.False(t, seen[a.Header.Get("X-Request-Id")], "an id of its own")
		seen[a.Header.Get("X-Request-Id")] = true
	}
	require.JSONEq(t, `{"status": "ok"}`, send(t, "GET", "/livez", "").body)
	require.JSONEq(t, `{"status": "ok"}`, send(t, "GET", "/readyz", "").body)
}

// Trouble

func TestLogHasOneLineARequestAndNoWordOfARecord(t *testing.T) {
	t.Parallel()
	s := newService(t, asService(product.database))
	const secret = "Grimsvotn"
	patient := newPatient(t, secret)
	unlock := lock(t, newPatient(t))
	defer unlock()
	routes := map[string]string{} // by request id
	for _, c := range [][]string{
		{`"GET /patients" status=200`, "GET", "/patients?search=" + secret, ""},
		{`"GET /patients" status=400`, "GET", "/patients?" + secret + "=" + secret, ""},
		{`"POST /patients/{patient_id}/interactions" status=201`, "POST", of(patient), entry("notes", secret)},
		{`"POST /patients/{patient_id}/interactions" status=422`, "POST", of(patient), entry("notes", secret, "outcome", secret)},
		{`"POST /patients/{patient_id}/interactions" status=400`, "POST", of(patient), entry(secret, secret)},
		{`"POST /patients/{patient_id}/interactions" status=503`, "POST", of(patient + 1), entry("notes", secret)},
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
		id := regexp.MustCompile(`request_id=(\w+)`).FindStringSubmatch(line)
		require.NotNil(t, id, line)
		require.Regexp(t, `^time=\S+ level=INFO msg=request method=[A-Z]+ route=`+regexp.QuoteMeta(routes[id[1]])+` duration=\S+ request_id=\w+`, line)
		require.NotContains(t, line, secret)
	}
}

// lock holds a patient's row, as a stuck program would.
func lock(t testing.TB, patient int64) (unlock func()) {
	t.Helper()
	tx, err := owner.Begin(anything)
	require.NoError(t, err)
	_, err = tx.Exec(anything, "SELECT FROM patients WHERE id = $1 FOR UPDATE", patient)
	require.NoError(t, err)
	return func() { tx.Rollback(anything) }
}

func TestLockedPatientCostsWritersAMomentAndReadersNothing(t *testing.T) {
	t.Parallel()
	s, patient := newService(t, asService(product.database)), newPatient(t)
	unlock := lock(t, patient)
	defer unlock()
	start := time.Now()
	refused(t, 503, "POST", s.url+of(patient), entry(), "Idempotency-Key", "k")
	require.Less(t, time.Since(start), 2*time.Second)
	start = time.Now()
	atOnce(80, func() any { // more than the pool serves within the time limit of a request
		refused(t, 503, "POST", s.url+of(patient), entry())
		require.Less(t, time.Since(start), 6*time.Second)
		asked := time.Now()
		require.Empty(t, read[PageOf[Interaction]](t, s.url+of(patient)).Items)
		require.Less(t, time.Since(asked), time.Second)
		return nil
	})
	unlock()
	write(t, s.url+of(patient), entry(), "Idempotency-Key", "k") // which the failed request did not use up
	require.Len(t, historyOf(t, patient, ""), 1)
}

func TestUnreachableDatabaseIsAnsweredInTimeAndTheProcessIsAlive(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never says a word
	require.NoError(t, err)
	defer silent.Close()
	for _, host := range []string{"127.0.0.1:1", silent.Addr().String()} {
		s := newService(t, "postgres://"+host+"/nothing?sslmode=disable")
		start := time.Now()
		for _, path := range []string{"/livez", "/openapi.json", "/docs/"} {
			require.Equal(t, 200, send(t, "GET", s.url+path, "").StatusCode)
		}
		var all sync.WaitGroup
		for _, path := range []string{"/readyz", "/doctors", "/patients", "/patients/1", "/patients/1/timeline", of(1), entryAt(1, 1)} {
			all.Go(func() { refused(t, 503, "GET", s.url+path, "") })
		}
		all.Go(func() { refused(t, 503, "POST", s.url+of(1), entry()) })
		all.Go(func() { refused(t, 503, "POST", s.url+entryAt(1, 1)+"/amendments", entry()) })
		all.Wait()
		require.Less(t, time.Since(start), 5*time.Second)
	}
}

func TestDatabaseWithoutTablesSaysWhatToLoad(t *testing.T) {
	t.Parallel()
	nobody := changed(product.database, func(_ *url.URL, q url.Values) { q.Set("role", "nobody_of_that_name") })
	for _, database := range []string{asService(newDatabase(t, "template1")), nobody} {
		s := newService(t, database)
		require.Contains(t, refused(t, 503, "GET", s.url+"/readyz", "").Detail, "load schema.sql")
		refused(t, 503, "GET", s.url+"/patients", "")
		require.Equal(t, 200, send(t, "GET", s.url+"/livez", "").StatusCode)
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

// described is every operation of the document, by method and path.
func described(t testing.TB) (document any, operations map[string]map[string]any) {
	t.Helper()
	document, operations = read[any](t, "/openapi.json"), map[string]map[string]any{}
	for path, item := range dig(document, "paths").(map[string]any) {
		for method, operation := range item.(map[string]any) {
			operations[strings.ToUpper(method)+" "+path] = operation.(map[string]any)
		}
	}
	return document, operations
}

func TestDocumentDescribesEveryOperationAndWhatItRefuses(t *testing.T) {
	t.Parallel()
	document, operations := described(t)
	require.Regexp(t, `^3\.1\.`, dig(document, "openapi"))
	answers := map[string]string{}
	seen := map[string]bool{}
	for name, operation := range operations {
		for _, part := range []string{"operationId", "summary", "description"} {
			require.NotEmpty(t, operation[part], name)
			require.False(t, seen[fmt.Sprint(operation[part])], "%s: its own %s", name, part)
			seen[fmt.Sprint(operation[part])] = true
		}
		require.Len(t, operation["tags"], 1, name)
		answers[name] = strings.Join(slices.Sorted(maps.Keys(operation["responses"].(map[string]any))), " ")
		for _, answer := range operation["responses"].(map[string]any) {
			require.NotEmpty(t, dig(answer, "description"), name)
		}
	}
	one := "/patients/{patient_id}/interactions/{interaction_id}"
	require.Equal(t, map[string]string{
		"GET /doctors": "200 4XX 503", "GET /patients": "200 4XX 503", "GET /patients/{patient_id}": "200 404 4XX 503", "GET /patients/{patient_id}/timeline": "200 404 4XX 503",
		"GET /patients/{patient_id}/interactions": "200 404 4XX 503", "POST /patients/{patient_id}/interactions": "201 404 422 4XX 503", "GET " + one: "200 404 4XX 503",
		"POST " + one + "/amendments": "201 404 409 422 4XX 503", "GET /livez": "200 4XX", "GET /readyz": "200 4XX 503", "GET /openapi.json": "200 4XX",
	}, answers)
}

func TestDocumentsOwnExamplesAnswerAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	s := newService(t, asService(newDatabase(t, seeded)))
	document, operations := described(t)
	for name, operation := range operations {
		method, path, _ := strings.Cut(name, " ")
		query := url.Values{}
		parameters, _ := operation["parameters"].([]any)
		for _, p := range parameters {
			value := cmp.Or(dig(p, "example"), dig(p, "schema", "default"))
			if in, name := dig(p, "in"), dig(p, "name").(string); in == "path" {
				path = strings.ReplaceAll(path, "{"+name+"}", fmt.Sprint(value))
			} else if value != nil {
				query.Set(name, fmt.Sprint(value))
			}
			require.NotEmpty(t, dig(p, "description"), name)
		}
		body := ""
		if example := dig(operation, "requestBody", "content", "application/json", "example"); example != nil {
			raw, err := json.Marshal(example)
			require.NoError(t, err)
			body = string(raw)
		}
		require.Equal(t, method == "POST", body != "")
		a := send(t, method, s.url+path+"?"+query.Encode(), body)
		answer := dig(operation, "responses", fmt.Sprint(a.StatusCode), "content", "application/json", "schema")
		require.Equal(t, name == "GET /openapi.json", answer == nil, "%s: %d %s", name, a.StatusCode, a.body)
		conforms(t, document, answer, decoded[any](t, a.StatusCode, a), name)
	}
	p := send(t, "POST", s.url+"/patients/1/interactions", "{}") // a refusal is described as well
	conforms(t, document, dig(document, "components", "schemas", "Problem"), decoded[any](t, 422, p), "Problem")
}

// conforms checks a value of an answer against its schema, which must require all that it names.
func conforms(t testing.TB, document, schema, value any, where string) {
	t.Helper()
	if reference, ok := dig(schema, "$ref").(string); ok {
		conforms(t, document, dig(document, strings.Split(reference[2:], "/")...), value, where)
		return
	}
	kind := map[bool]string{true: "integer", false: "unknown"}[value == any(math.Trunc(number(value)))]
	switch v := value.(type) {
	case nil:
		kind = "null"
	case string:
		kind = "string"
	case []any:
		kind = "array"
		for _, item := range v {
			conforms(t, document, dig(schema, "items"), item, where+"[]")
		}
	case map[string]any:
		kind = "object"
		properties, _ := dig(schema, "properties").(map[string]any)
		for name := range properties {
			if name != "errors" { // of a problem that has none
				require.Contains(t, dig(schema, "required"), name, where)
			}
		}
		for name, property := range v {
			if properties != nil {
				require.Contains(t, properties, name, where)
				conforms(t, document, properties[name], property, where+"."+name)
			}
		}
	}
	if types := dig(schema, "type"); types != nil {
		require.Contains(t, fmt.Sprint(types), kind, where)
	}
	if enum, ok := dig(schema, "enum").([]any); ok {
		require.Contains(t, enum, value, where)
	}
}

func number(v any) float64 { n, _ := v.(float64); return n }

func TestSwaggerUILoadsOnlyWhatTheServiceServesAndItsPolicyAllows(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "HEAD"} {
		root := send(t, method, "/", "")
		require.Equal(t, []any{302, "/docs/"}, []any{root.StatusCode, root.Header.Get("Location")})
	}
	page := send(t, "GET", "/docs/", "")
	require.Equal(t, 200, page.StatusCode)
	policy := page.Header.Get("Content-Security-Policy")
	require.Contains(t, policy, "default-src 'none'")
	require.NotContains(t, policy, "unsafe")
	require.NotRegexp(t, `https?:|\*`, policy)
	assets := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page.body, -1)
	require.NotEmpty(t, assets)
	for _, asset := range assets {
		require.True(t, strings.HasPrefix(asset[1], "/docs/"), asset[1])
		require.Equal(t, 200, send(t, "GET", asset[1], "").StatusCode, asset[1])
	}
	inline := regexp.MustCompile(`(?s)<(script|style)>(.*?)</`).FindAllStringSubmatch(page.body, -1)
	require.NotEmpty(t, inline)
	for _, part := range inline {
		hash := sha256.Sum256([]byte(part[2]))
		require.Regexp(t, part[1]+`-src [^;]*'sha256-`+regexp.QuoteMeta(base64.StdEncoding.EncodeToString(hash[:]))+`'`, policy)
	}
	require.Contains(t, page.body, "/openapi.json")
	refused(t, 404, "GET", "/docs/nothing.js", "")
}
