package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

var (
	baseURL string    // of the service under test
	owner   string    // the database, as its owner sees it
	logged  logBuffer // what the service wrote to its log
)

type logBuffer struct {
	sync.Mutex
	bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.Write(p)
}

func TestMain(m *testing.M) {
	code, err := testAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testAll runs the tests on a server of their own, or in a database of their own on the server of DATABASE_URL.
func testAll(m *testing.M) (int, error) {
	ctx, server := context.Background(), os.Getenv("DATABASE_URL")
	if server == "" {
		folder, err := os.MkdirTemp("", "patient-interactions-test")
		if err != nil {
			return 1, err
		}
		private, err := startPostgres(ctx, folder, "fsync=off")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(private.folder)
		defer private.stop()
		server = private.url
	}
	admin, err := pgx.Connect(ctx, server)
	if err != nil {
		return 1, err
	}
	defer admin.Close(ctx)
	name := "test_" + strings.ToLower(rand.Text())
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return 1, err
	}
	defer admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
	database, err := url.Parse(server)
	if err != nil {
		return 1, err
	}
	database.Path = "/" + name
	owner = database.String()
	if err := load(ctx, owner); err != nil {
		return 1, err
	}
	query := database.Query()
	query.Set("role", "patient_interactions")
	database.RawQuery = query.Encode()
	store, err := OpenStore(ctx, database.String())
	if err != nil {
		return 1, err
	}
	defer store.Close()
	handler := newHandler(store, slog.New(slog.NewTextHandler(&logged, nil)))
	service := httptest.NewServer(handler)
	defer service.Close()
	baseURL = service.URL
	return m.Run(), nil
}

// call sends a request and reads the answer into out, which may be nil.
func call(t *testing.T, method, path, body string, out any, headers ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(method, baseURL+path, strings.NewReader(body))
	require.NoError(t, err)
	if method == "POST" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.NotEmpty(t, answer.Header.Get("X-Request-Id"))
	if out != nil {
		require.NoError(t, json.Unmarshal(raw, out), "%s", raw)
	}
	return answer
}

// newPatient registers a patient of the test's own, born on 1980-01-01.
func newPatient(t *testing.T, name string) (id int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), owner)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, conn.QueryRow(t.Context(), "INSERT INTO patients (name, birth_date) VALUES ($1, '1980-01-01') RETURNING id", name).Scan(&id))
	return id
}

func history(patient int64) string { return fmt.Sprintf("/patients/%d/interactions", patient) }

// documents records an interaction of doctor 1.
func documents(t *testing.T, path, outcome, occurredAt string) (made Interaction) {
	t.Helper()
	body := fmt.Sprintf(`{"doctor_id": 1, "outcome": %q, "notes": "seen", "occurred_at": %q}`, outcome, occurredAt)
	require.Equal(t, 201, call(t, "POST", path, body, &made).StatusCode)
	return made
}

func stateOf(t *testing.T, patient int64) (p Patient) {
	t.Helper()
	require.Equal(t, 200, call(t, "GET", fmt.Sprintf("/patients/%d", patient), "", &p).StatusCode)
	return p
}

func TestDocumentedInteractionIsReadBackAsAnswered(t *testing.T) {
	t.Parallel()
	patient := newPatient(t, "Read Back")
	var made, read Interaction
	answer := call(t, "POST", history(patient), `{"doctor_id": 2, "outcome": "healthy", "notes": " fine <&> ", "occurred_at": "2024-05-13T11:30:00.1234567+02:00"}`, &made)
	require.Equal(t, 201, answer.StatusCode)
	require.Equal(t, "fine <&>", made.Notes)
	require.Equal(t, "2024-05-13T09:30:00.123456Z", made.OccurredAt.Format("2006-01-02T15:04:05.999999999Z07:00"))
	require.Equal(t, 200, call(t, "GET", answer.Header.Get("Location"), "", &read).StatusCode)
	require.Equal(t, made, read)
}

func TestHistoryPagesNewestFirstWithoutGapOrRepeat(t *testing.T) {
	t.Parallel()
	patient := newPatient(t, "Paged")
	var want, got []int64
	for _, day := range []string{"05", "04", "04", "03", "01"} {
		want = append(want, documents(t, history(patient), "healthy", "2024-01-"+day+"T09:00:00Z").ID)
	}
	want[1], want[2] = want[2], want[1] // of two at one instant, the highest id comes first
	for path := history(patient) + "?limit=2"; path != ""; {
		var page PageOf[Interaction]
		require.Equal(t, 200, call(t, "GET", path, "", &page).StatusCode)
		for _, i := range page.Items {
			got = append(got, i.ID)
		}
		path = ""
		if page.NextCursor != nil {
			path = fmt.Sprintf("%s?limit=2&cursor=%s", history(patient), *page.NextCursor)
		}
	}
	require.Equal(t, want, got)
}

func TestHealthStatusFollowsTheLatestCurrentInteraction(t *testing.T) {
	t.Parallel()
	patient := newPatient(t, "Followed")
	require.Equal(t, HealthStatus("unknown"), stateOf(t, patient).HealthStatus)
	ill := documents(t, history(patient), "unhealthy", "2024-02-01T09:00:00Z")
	documents(t, history(patient), "healthy", "2024-01-01T09:00:00Z") // a late entry
	require.Equal(t, HealthStatus("unhealthy"), stateOf(t, patient).HealthStatus)
	amendments := fmt.Sprintf("%s/%d/amendments", history(patient), ill.ID)
	struck := documents(t, amendments, "entered_in_error", "2024-02-01T09:00:00Z")
	require.Equal(t, HealthStatus("healthy"), stateOf(t, patient).HealthStatus)

	var problem Problem
	require.Equal(t, 409, call(t, "POST", amendments, `{"doctor_id": 1, "outcome": "healthy", "notes": "again"}`, &problem).StatusCode)
	require.Contains(t, problem.Detail, fmt.Sprint(struck.ID))
	var current, all PageOf[Interaction]
	call(t, "GET", history(patient), "", &current)
	call(t, "GET", history(patient)+"?include_amended=true", "", &all)
	require.Len(t, current.Items, 1)
	require.Len(t, all.Items, 3)
}

func TestTwentyEqualRetriesMakeOneEntry(t *testing.T) {
	t.Parallel()
	patient := newPatient(t, "Retried")
	ids := make([]int64, 20)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			var made Interaction
			call(t, "POST", history(patient), `{"doctor_id": 1, "outcome": "healthy", "notes": "once"}`, &made, "Idempotency-Key", "k")
			ids[i] = made.ID
		})
	}
	all.Wait()
	for _, id := range ids {
		require.Equal(t, ids[0], id)
	}
	require.NotZero(t, ids[0])
	var problem Problem
	require.Equal(t, 422, call(t, "POST", history(patient), `{"doctor_id": 1, "outcome": "unhealthy", "notes": "once"}`, &problem, "Idempotency-Key", "k").StatusCode)
	require.Equal(t, "Idempotency-Key", problem.Errors[0].Field)
}

func TestTimelineJoinsEqualOutcomesToPeriods(t *testing.T) {
	t.Parallel()
	patient := newPatient(t, "Timed")
	for day, outcome := range []string{"healthy", "unhealthy", "unhealthy", "healthy"} {
		documents(t, history(patient), outcome, fmt.Sprintf("2024-03-0%dT09:00:00Z", day+1))
	}
	var timeline Timeline
	require.Equal(t, 200, call(t, "GET", fmt.Sprintf("/patients/%d/timeline", patient), "", &timeline).StatusCode)
	var counts []int64
	for _, period := range timeline.Items {
		counts = append(counts, period.Interactions)
	}
	require.Equal(t, []int64{1, 2, 1}, counts)
	require.Equal(t, timeline.Items[1].From, *timeline.Items[0].To)
	require.Nil(t, timeline.Items[2].To)
}

func TestSearchFoldsCaseByUnicode(t *testing.T) {
	t.Parallel()
	var found PageOf[Patient]
	require.Equal(t, 200, call(t, "GET", "/patients?search="+url.QueryEscape("ÖZ"), "", &found).StatusCode)
	require.Len(t, found.Items, 1)
	require.Equal(t, "Deniz Özgünay", found.Items[0].Name)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	entry := `{"doctor_id": 1, "outcome": "healthy", "notes": "x"}`
	for _, c := range []struct {
		name, method, path, body string
		status                   int
	}{
		{"an id that is none", "GET", "/patients/x", "", 400},
		{"a limit out of bounds", "GET", "/patients?limit=1001", "", 400},
		{"an unknown parameter", "GET", "/doctors?x=1", "", 400},
		{"a repeated parameter", "GET", "/doctors?limit=1&limit=1", "", 400},
		{"a cursor of another form", "GET", "/doctors?cursor=x", "", 400},
		{"a NUL in a search", "GET", "/patients?search=%00", "", 400},
		{"a patient who does not exist", "GET", "/patients/999999", "", 404},
		{"a history of nobody", "GET", "/patients/999999/interactions", "", 404},
		{"a timeline of nobody", "GET", "/patients/999999/timeline", "", 404},
		{"an entry of nobody", "POST", "/patients/999999/interactions", entry, 404},
		{"an unknown path", "GET", "/nothing", "", 404},
		{"a method the path does not take", "DELETE", "/patients", "", 405},
		{"broken JSON", "POST", "/patients/1/interactions", `{`, 400},
		{"an unknown field", "POST", "/patients/1/interactions", `{"x": 1}`, 400},
		{"something after the body", "POST", "/patients/1/interactions", entry + "1", 400},
		{"half a surrogate pair", "POST", "/patients/1/interactions", `{"notes": "\ud800"}`, 400},
		{"bytes that are not UTF-8", "POST", "/patients/1/interactions", "{\"notes\": \"\xff\"}", 400},
		{"a body too large", "POST", "/patients/1/interactions", `"` + strings.Repeat("x", maxBody) + `"`, 413},
		{"empty notes", "POST", "/patients/1/interactions", `{"doctor_id": 1, "outcome": "healthy", "notes": " "}`, 422},
		{"notes too long", "POST", "/patients/1/interactions", `{"doctor_id": 1, "outcome": "healthy", "notes": "` + strings.Repeat("ä", 10_001) + `"}`, 422},
		{"a strike-out that amends nothing", "POST", "/patients/1/interactions", `{"doctor_id": 1, "outcome": "entered_in_error", "notes": "x"}`, 422},
		{"a doctor who does not exist", "POST", "/patients/1/interactions", `{"doctor_id": 99, "outcome": "healthy", "notes": "x"}`, 422},
		{"the future", "POST", "/patients/1/interactions", `{"doctor_id": 1, "outcome": "healthy", "notes": "x", "occurred_at": "2999-01-01T00:00:00Z"}`, 422},
		{"a time before birth", "POST", "/patients/1/interactions", `{"doctor_id": 1, "outcome": "healthy", "notes": "x", "occurred_at": "1958-03-13T23:59:59Z"}`, 422},
	} {
		t.Run(c.name, func(t *testing.T) {
			var problem Problem
			answer := call(t, c.method, c.path, c.body, &problem)
			require.Equal(t, c.status, answer.StatusCode)
			require.Equal(t, c.status, problem.Status)
			require.Equal(t, "application/problem+json", answer.Header.Get("Content-Type"))
		})
	}
}

func TestServiceRoleAndOwnerCannotChangeWhatWasDocumented(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), owner)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	for _, statement := range []string{"UPDATE interactions SET notes = 'x'", "DELETE FROM interactions", "TRUNCATE interactions"} {
		_, err := conn.Exec(t.Context(), "SET session_replication_role = replica; "+statement)
		require.ErrorContains(t, err, "append-only")
	}
	_, err = conn.Exec(t.Context(), "SET session_replication_role = origin; SET ROLE patient_interactions; UPDATE patients SET health_status = 'healthy', last_interaction_at = now()")
	require.ErrorContains(t, err, "permission denied")
}
