package main

// These tests are the specification of the service, in the order of its API.
//
// They send HTTP requests to the real handler, which uses a real PostgreSQL as the role that it has in production.
// Nothing is mocked, because most of what can go wrong lies between the handler and the database. A run starts a
// throwaway PostgreSQL, or uses the server of DATABASE_URL, and creates databases of its own there.
//
// Tests run in parallel; their subtests run in order unless they say otherwise. Most tests share one database and
// create patients of their own in it. A list is searched for a random tag in their names, which leaves out those of
// other tests. A test that changes what others see gets a database of its own.
//
// After the operations come: concurrent clients, the log, the OpenAPI document, the rules and permissions of the
// database, a database in trouble, the program as a process, a comparison with a model, fuzzing, benchmarks, and the
// helpers.

import (
	"bufio"
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
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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

// The operations

func TestDoctors(t *testing.T) {
	t.Parallel()

	t.Run("are listed by name, then id, page by page", func(t *testing.T) {
		tag := rand.Text()
		zorn := insertDoctor(t, "Zorn", tag+"1")
		ärmel := insertDoctor(t, "Ärmel", tag+"2")
		arm := insertDoctor(t, "Arm", tag+"4")
		otherArm := insertDoctor(t, "Arm", tag+"3")
		ast := insertDoctor(t, "Ast", tag+"5")

		doctors := allPages[Doctor](t, "/doctors?limit=1")

		doctors = slices.DeleteFunc(doctors, func(d Doctor) bool { return !strings.HasPrefix(d.Specialty, tag) })
		require.Equal(t, []Doctor{
			{arm, "Arm", tag + "4"},
			{otherArm, "Arm", tag + "3"},
			{ärmel, "Ärmel", tag + "2"},
			{ast, "Ast", tag + "5"},
			{zorn, "Zorn", tag + "1"},
		}, doctors)
	})
}

func TestPatientList(t *testing.T) {
	t.Parallel()

	t.Run("is ordered by Unicode's root collation, then id", func(t *testing.T) {
		tag := rand.Text()
		for _, name := range []string{
			"Żak", "Zahn", "Arzt", "Zahn", "Özil", "arzt", "Azur", "Ärzte", "ozon", "Łuk",
		} {
			newPatientNamed(t, name+" "+tag)
		}

		patients := allPages[Patient](t, "/patients?limit=2&search="+tag)

		require.Equal(t, []string{"arzt", "Arzt", "Ärzte", "Azur", "Łuk", "Özil", "ozon", "Zahn", "Zahn", "Żak"},
			namesWithout(tag, patients))
		require.Less(t, patients[7].ID, patients[8].ID)
	})

	t.Run("rows added while paging neither repeat nor hide others", func(t *testing.T) {
		tag := rand.Text()
		for _, name := range []string{"B", "D", "F"} {
			newPatientNamed(t, name+" "+tag)
		}
		list := "/patients?limit=1&search=" + tag
		first := getJSON[Page[Patient]](t, list)

		newPatientNamed(t, "A "+tag)
		newPatientNamed(t, "C "+tag)
		rest := pagesAfter[Patient](t, list, *first.NextCursor)

		require.Equal(t, []string{"B", "C", "D", "F"}, namesWithout(tag, append(first.Items, rest...)))
	})

	t.Run("a patient who leaves the filtered list still marks a position", func(t *testing.T) {
		tag := rand.Text()
		a, b := newPatientNamed(t, "A "+tag), newPatientNamed(t, "B "+tag)
		list := "/patients?limit=1&health_status=unknown&search=" + tag
		first := getJSON[Page[Patient]](t, list)

		a.document(healthy, january(1))
		rest := getJSON[Page[Patient]](t, list+"&cursor="+*first.NextCursor)

		require.Equal(t, []int64{b.id}, patientIDs(rest.Items))
	})

	t.Run("is filtered by name, health status and doctor together", func(t *testing.T) {
		tag := rand.Text()
		well, ill := newPatientNamed(t, "well "+tag), newPatientNamed(t, "ill "+tag)
		amended, struck := newPatientNamed(t, "amended "+tag), newPatientNamed(t, "struck "+tag)
		well.document(healthy, january(1), fields{"doctor_id": 2})
		ill.document(healthy, january(1), fields{"doctor_id": 2})
		ill.document(unhealthy, january(2), fields{"doctor_id": 3})
		amended.amend(amended.document(healthy, january(1), fields{"doctor_id": 2}), unhealthy, fields{"doctor_id": 3})
		mistake := struck.document(healthy, january(1), fields{"doctor_id": 2})
		struck.amend(mistake, enteredInError, fields{"doctor_id": 3})

		for _, test := range []struct {
			filter string
			names  []string
		}{
			{"", []string{"amended", "ill", "struck", "well"}},
			{"doctor_id=&health_status=&limit=&cursor=", []string{"amended", "ill", "struck", "well"}},
			{"health_status=healthy", []string{"well"}},
			{"health_status=unhealthy", []string{"amended", "ill"}},
			{"health_status=unknown", []string{"struck"}},
			{"doctor_id=2", []string{"ill", "well"}},
			{"doctor_id=3", []string{"amended", "ill"}},
			{"doctor_id=4", []string{}},
			{"doctor_id=9223372036854775807", []string{}},
			{"doctor_id=2&health_status=unhealthy", []string{"ill"}},
			{"doctor_id=3&health_status=healthy", []string{}},
			{fmt.Sprintf("health_status=unhealthy&cursor=%d", amended.id), []string{"ill"}},
		} {
			found := getJSON[Page[Patient]](t, "/patients?search="+tag+"&"+test.filter)
			require.Equal(t, test.names, namesWithout(tag, found.Items), test.filter)
		}
	})
}

func TestSearch(t *testing.T) {
	t.Parallel()
	tag := rand.Text()
	for _, name := range []string{
		"Mesut Özil", "İpek Işık", "Andre\u0301 Weiß", "Mustermann Anna",
		"Łukasz Sørensen", "Иванов Пётр", "Ὀδυσσεύς", "Ngọc Nguyễn", "李小龍",
		"Za\u036flgo",
		"100% Sure", "1000 Sure", "a_b", "axb", `c\d`, "cd",
	} {
		newPatientNamed(t, name+" "+tag)
	}

	for _, test := range []struct {
		name   string
		search string
		found  []string
	}{
		{"ignores case", "mESUT", []string{"Mesut Özil"}},
		{"ignores accents", "ozil", []string{"Mesut Özil"}},
		{"ignores the accents of the search as well", "mésút", []string{"Mesut Özil"}},
		{"finds words in any order", "ozil mes", []string{"Mesut Özil"}},
		{"needs every word", "ozil anna", []string{}},
		{"allows several blanks between words", "anna  muster", []string{"Mustermann Anna"}},
		{"separates words at any white space of Unicode", "anna\u2003muster", []string{"Mustermann Anna"}},
		{"finds the middle of a word", "term", []string{"Mustermann Anna"}},
		{"finds a dotted capital I", "ipek", []string{"İpek Işık"}},
		{"finds a capital I by i", "isı", []string{"İpek Işık"}},
		{"finds a decomposed name by composed letters", "andré", []string{"Andre\u0301 Weiß"}},
		{"finds a composed name by decomposed letters", "O\u0308zil", []string{"Mesut Özil"}},
		{"does not replace letters without a decomposition", "lukasz", []string{}},
		{"finds letters without a decomposition", "łuk søren", []string{"Łukasz Sørensen"}},
		{"does not confuse ß and ss", "weiss", []string{}},
		{"finds Cyrillic", "ПЕТР ива", []string{"Иванов Пётр"}},
		{"finds Greek, whatever the form of the sigma", "οδυσσευσ", []string{"Ὀδυσσεύς"}},
		{"finds Greek by a final sigma", "ΟΔΥΣΣΕΎς", []string{"Ὀδυσσεύς"}},
		{"finds Vietnamese", "nguyen ngoc", []string{"Ngọc Nguyễn"}},
		{"ignores combining marks up to U+036F", "zalgo", []string{"Za\u036flgo"}},
		{"finds Chinese", "小龍", []string{"李小龍"}},
		{"takes a percent sign literally", "100%", []string{"100% Sure"}},
		{"takes an underscore literally", "a_b", []string{"a_b"}},
		{"takes a backslash literally", `c\d`, []string{`c\d`}},
		{"ignores a word of combining marks", "\u0301 mesut", []string{"Mesut Özil"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := getJSON[Page[Patient]](t, "/patients?search="+url.QueryEscape(test.search+" "+tag))
			require.Equal(t, test.found, namesWithout(tag, found.Items))
		})
	}

	t.Run("without a letter counts as not given", func(t *testing.T) {
		for _, search := range []string{"", " \t\u3000", "\u0301"} {
			found := getJSON[Page[Patient]](t, "/patients?limit=2&search="+url.QueryEscape(search))
			require.Len(t, found.Items, 2, "%q", search)
		}
	})

	t.Run("has at most 100 characters", func(t *testing.T) {
		require.Equal(t, 200, api.get(t, "/patients?search="+strings.Repeat("%C3%84", 100)).status)
		expectFaults(t, api.get(t, "/patients?search="+strings.Repeat("%C3%84", 101)), "search")
	})
}

func TestPatient(t *testing.T) {
	t.Parallel()

	t.Run("has the documented fields", func(t *testing.T) {
		patient := newPatientNamed(t, "Ana")
		patient.document(healthy, january(2))

		require.JSONEq(t, fmt.Sprintf(`{
			"id": %d,
			"name": "Ana",
			"birth_date": "1980-01-31",
			"health_status": "healthy",
			"last_interaction_at": "2024-01-02T09:00:00Z"
		}`, patient.id), api.get(t, patient.path()).body)
	})

	t.Run("who does not exist is not found", func(t *testing.T) {
		problem := expectProblem(t, api.get(t, "/patients/999999"), 404)
		require.Equal(t, "There is no patient 999999.", problem.Detail)
	})
}

func TestHealthStatus(t *testing.T) {
	t.Parallel()
	expect := func(t *testing.T, patient testPatient, status string, lastInteractionAt *time.Time) {
		t.Helper()
		got := getJSON[Patient](t, patient.path())
		require.Equal(t, status, got.HealthStatus)
		require.Equal(t, lastInteractionAt, got.LastInteractionAt)
	}

	t.Run("is unknown without interactions", func(t *testing.T) {
		expect(t, newPatient(t), unknown, nil)
	})

	t.Run("is the outcome of the interaction that occurred last, not of the one recorded last", func(t *testing.T) {
		patient := newPatient(t)
		patient.document(healthy, january(2))
		patient.document(unhealthy, january(1))
		expect(t, patient, healthy, new(january(2)))
	})

	t.Run("is that of the highest id among interactions at the same time", func(t *testing.T) {
		patient := newPatient(t)
		patient.document(healthy, january(2))
		patient.document(unhealthy, january(2))
		expect(t, patient, unhealthy, new(january(2)))
	})

	t.Run("follows an amendment", func(t *testing.T) {
		patient := newPatient(t)
		patient.document(healthy, january(2))
		last := patient.document(healthy, january(3))
		patient.amend(last, unhealthy, fields{"occurred_at": january(4)})
		expect(t, patient, unhealthy, new(january(4)))
	})

	t.Run("goes back if an interaction is struck out", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(2))
		last := patient.document(unhealthy, january(3))
		patient.amend(last, enteredInError)
		expect(t, patient, healthy, new(january(2)))
		patient.amend(first, enteredInError)
		expect(t, patient, unknown, nil)
	})

	t.Run("returns if a struck out interaction is brought back", func(t *testing.T) {
		patient := newPatient(t)
		struck := patient.amend(patient.document(healthy, january(2)), enteredInError)
		patient.amend(struck, unhealthy)
		expect(t, patient, unhealthy, new(january(2)))
	})
}

func TestHistory(t *testing.T) {
	t.Parallel()

	t.Run("shows the latest interaction first, and of the same time the highest id", func(t *testing.T) {
		patient := newPatient(t)
		a := patient.document(healthy, january(3))
		b := patient.document(unhealthy, january(4))
		c := patient.document(healthy, january(4))
		d := patient.document(healthy, january(1))
		e := patient.document(healthy, january(4))

		for _, limit := range []int{1, 2, 3, 5, 100} {
			history := allPages[Interaction](t, fmt.Sprintf("%s?limit=%d", patient.interactionsPath(), limit))
			require.Equal(t, []Interaction{e, c, b, a, d}, history, "limit %d", limit)
		}
	})

	t.Run("shows only current interactions unless asked for all", func(t *testing.T) {
		patient := newPatient(t)
		wrong := patient.document(healthy, january(1))
		right := patient.amend(wrong, unhealthy)
		struck := patient.document(healthy, january(2))
		striking := patient.amend(struck, enteredInError)

		require.Equal(t, []int64{right.ID}, patient.history(""))
		require.Equal(t, []int64{right.ID}, patient.history("include_amended=false"))
		require.Equal(t, []int64{striking.ID, struck.ID, right.ID, wrong.ID}, patient.history("include_amended=true"))
	})

	t.Run("is filtered by outcome, doctor and time", func(t *testing.T) {
		patient := newPatient(t)
		a := patient.document(healthy, january(1))
		b := patient.document(unhealthy, january(2), fields{"doctor_id": 2})
		c := patient.document(healthy, january(3), fields{"doctor_id": 2})
		d := patient.document(unhealthy, january(4))
		e := patient.amend(d, enteredInError, fields{"doctor_id": 3})
		f := patient.amend(b, healthy, fields{"doctor_id": 3})

		for _, test := range []struct {
			filter string
			ids    []int64
		}{
			{"outcome=&doctor_id=&from=&to=&include_amended=&cursor=&limit=", []int64{c.ID, f.ID, a.ID}},
			{"outcome=healthy", []int64{c.ID, f.ID, a.ID}},
			{"outcome=unhealthy", []int64{}},
			{"outcome=unhealthy&include_amended=true", []int64{d.ID, b.ID}},
			{"outcome=entered_in_error&include_amended=true", []int64{e.ID}},
			{"doctor_id=2", []int64{c.ID}},
			{"doctor_id=2&include_amended=true", []int64{c.ID, b.ID}},
			{"doctor_id=999999", []int64{}},
			{"from=2024-01-02T09:00:00Z", []int64{c.ID, f.ID}},
			{"from=2024-01-02T10:00:00.000001%2B01:00", []int64{c.ID}},
			{"to=2024-01-03T09:00:00Z", []int64{f.ID, a.ID}},
			{"to=0001-01-01T00:00:00Z", []int64{}},
			{"from=2024-01-02T09:00:00Z&to=2024-01-03T09:00:00Z", []int64{f.ID}},
			{"from=2024-01-03T09:00:00Z&to=2024-01-03T09:00:00Z", []int64{}},
			{"from=2024-01-04T09:00:00Z&to=2024-01-01T09:00:00Z", []int64{}},
			{"outcome=healthy&doctor_id=1&to=2024-01-02T09:00:00Z", []int64{a.ID}},
		} {
			require.Equal(t, test.ids, patient.history(test.filter), test.filter)
		}
	})

	t.Run("of a patient who does not exist is not found", func(t *testing.T) {
		expectProblem(t, api.get(t, "/patients/999999/interactions"), 404)
		expectProblem(t, api.get(t, "/patients/999999/interactions?include_amended=true"), 404)
	})
}

func TestDocumentInteraction(t *testing.T) {
	t.Parallel()

	t.Run("returns the new interaction and its location", func(t *testing.T) {
		patient := newPatient(t)

		response := api.post(t, patient.interactionsPath(), `{
			"doctor_id": 2,
			"outcome": "unhealthy",
			"notes": "Fever.",
			"occurred_at": "2024-01-02T10:00:00.1234569+01:00"
		}`)

		interaction := expectCreated(t, response)
		require.Equal(t, patient.interactionPath(interaction.ID), response.header.Get("Location"))
		require.JSONEq(t, fmt.Sprintf(`{
			"id": %d,
			"patient_id": %d,
			"doctor": {"id": 2, "name": "Dr. Ruben Achterkamp"},
			"occurred_at": "2024-01-02T09:00:00.123456Z",
			"recorded_at": %q,
			"outcome": "unhealthy",
			"notes": "Fever.",
			"amends": null,
			"amended_by": null
		}`, interaction.ID, patient.id, interaction.RecordedAt.Format(time.RFC3339Nano)), response.body)
		require.WithinDuration(t, time.Now(), interaction.RecordedAt, time.Minute)
		require.Regexp(t, `"recorded_at":"[^"]+Z"`, response.body)
		require.Equal(t, response.body, api.get(t, patient.interactionPath(interaction.ID)).body)
	})

	t.Run("uses the current time if the request has none, or null", func(t *testing.T) {
		omitted, null := newPatient(t).post(), newPatient(t).post(fields{"occurred_at": nil})
		require.WithinDuration(t, time.Now(), omitted.OccurredAt, time.Minute)
		require.WithinDuration(t, time.Now(), null.OccurredAt, time.Minute)
	})

	t.Run("of a patient who does not exist is not found", func(t *testing.T) {
		expectProblem(t, api.post(t, "/patients/999999/interactions", interactionBody()), 404)
		byUnknownDoctor := interactionBody(fields{"doctor_id": 999999})
		expectProblem(t, api.post(t, "/patients/999999/interactions", byUnknownDoctor), 404)
	})

	t.Run("by a doctor who does not exist is refused", func(t *testing.T) {
		patient := newPatient(t)
		response := api.post(t, patient.interactionsPath(), interactionBody(fields{"doctor_id": 999999}))
		expectFaults(t, response, "doctor_id")
		require.Empty(t, patient.history("include_amended=true"))
	})
}

func TestInteraction(t *testing.T) {
	t.Parallel()

	t.Run("of another patient is not found", func(t *testing.T) {
		patient, other := newPatient(t), newPatient(t)
		interaction := other.document(healthy, january(1))
		expectProblem(t, api.get(t, patient.interactionPath(interaction.ID)), 404)
	})

	t.Run("that does not exist is not found", func(t *testing.T) {
		expectProblem(t, api.get(t, newPatient(t).interactionPath(9223372036854775807)), 404)
		expectProblem(t, api.get(t, "/patients/999999/interactions/1"), 404)
	})
}

func TestAmendInteraction(t *testing.T) {
	t.Parallel()

	t.Run("links both interactions, wherever they are shown", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))

		second := patient.amend(first, unhealthy)

		first.AmendedBy = &second.ID
		require.Equal(t, &first.ID, second.Amends)
		require.Equal(t, first, getJSON[Interaction](t, patient.interactionPath(first.ID)))
		require.Equal(t, second, getJSON[Interaction](t, patient.interactionPath(second.ID)))
		all := getJSON[Page[Interaction]](t, patient.interactionsPath()+"?include_amended=true")
		require.Equal(t, []Interaction{second, first}, all.Items)
	})

	t.Run("keeps the time unless the request has one", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))
		second := patient.amend(first, healthy)
		require.Equal(t, january(1), second.OccurredAt)
		require.Equal(t, january(3), patient.amend(second, healthy, fields{"occurred_at": january(3)}).OccurredAt)
	})

	t.Run("is refused for all but the newest of a chain, and says which one amended it", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))
		second := patient.amend(first, unhealthy)
		third := patient.amend(second, healthy)

		problem := expectProblem(t, api.post(t, patient.amendmentsPath(first.ID), interactionBody()), 409)

		require.Contains(t, problem.Detail, fmt.Sprintf("by interaction %d.", second.ID))
		problem = expectProblem(t, api.post(t, patient.amendmentsPath(second.ID), interactionBody()), 409)
		require.Contains(t, problem.Detail, fmt.Sprintf("by interaction %d.", third.ID))
		require.Equal(t, []int64{third.ID}, patient.history(""))
	})

	t.Run("of an interaction that the patient does not have is not found", func(t *testing.T) {
		patient, other := newPatient(t), newPatient(t)
		elsewhere := other.document(healthy, january(1))
		expectProblem(t, api.post(t, patient.amendmentsPath(elsewhere.ID), interactionBody()), 404)
		expectProblem(t, api.post(t, patient.amendmentsPath(9223372036854775807), interactionBody()), 404)
		expectProblem(t, api.post(t, "/patients/999999/interactions/1/amendments", interactionBody()), 404)
	})

	t.Run("has the same body as an interaction", func(t *testing.T) {
		patient := newPatient(t)
		path := patient.amendmentsPath(patient.document(healthy, january(1)).ID)
		tomorrow := time.Now().AddDate(0, 0, 1)
		for _, test := range []struct {
			faulty fields
			names  []string
		}{
			{fields{"doctor_id": nil, "notes": " ", "x": 1}, []string{"doctor_id", "notes", "x"}},
			{fields{"outcome": unknown}, []string{"outcome"}},
			{fields{"outcome": enteredInError, "occurred_at": tomorrow}, []string{"occurred_at"}},
			{fields{"doctor_id": 999999}, []string{"doctor_id"}},
		} {
			expectFaults(t, api.post(t, path, interactionBody(test.faulty)), test.names...)
		}
		require.Len(t, patient.history("include_amended=true"), 1)
	})

	t.Run("can strike out after the birth date was corrected, with and without a time", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))
		second := patient.document(healthy, january(2))
		patient.correctBirthDate("2024-03-01")

		patient.amend(first, enteredInError)
		patient.amend(second, enteredInError, fields{"occurred_at": january(2)})

		require.Empty(t, patient.history(""))
	})

	t.Run("is refused if the kept time is now before the birth date", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))
		patient.correctBirthDate("2024-03-01")
		expectFaults(t, api.post(t, patient.amendmentsPath(first.ID), interactionBody()), "occurred_at")
	})
}

func TestTimeline(t *testing.T) {
	t.Parallel()

	t.Run("joins consecutive interactions with the same outcome", func(t *testing.T) {
		patient := newPatient(t)
		patient.document(unhealthy, january(4))
		patient.document(healthy, january(1))
		patient.document(healthy, january(6))
		patient.document(healthy, january(7))
		patient.document(unhealthy, january(3)) // recorded late
		patient.document(healthy, january(3))   // between two unhealthy ones at the same time
		patient.document(unhealthy, january(3))
		patient.amend(patient.document(unhealthy, january(5)), enteredInError)
		patient.amend(patient.document(unhealthy, january(2)), healthy)

		require.JSONEq(t, `{"health_status": "healthy", "items": [
			{"outcome": "healthy",   "from": "2024-01-01T09:00:00Z", "to": "2024-01-03T09:00:00Z", "interactions": 2},
			{"outcome": "unhealthy", "from": "2024-01-03T09:00:00Z", "to": "2024-01-03T09:00:00Z", "interactions": 1},
			{"outcome": "healthy",   "from": "2024-01-03T09:00:00Z", "to": "2024-01-03T09:00:00Z", "interactions": 1},
			{"outcome": "unhealthy", "from": "2024-01-03T09:00:00Z", "to": "2024-01-06T09:00:00Z", "interactions": 2},
			{"outcome": "healthy",   "from": "2024-01-06T09:00:00Z", "to": null,                   "interactions": 2}
		]}`, api.get(t, patient.path()+"/timeline").body)
	})

	t.Run("is not paginated", func(t *testing.T) {
		patient := newPatient(t)
		execute(t, `INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes)
			SELECT $1, 1, '2024-01-01'::timestamptz + n * interval '1 hour',
			       CASE WHEN n % 2 = 0 THEN 'healthy' ELSE 'unhealthy' END::outcome, 'x'
			FROM generate_series(1, 201) n`, patient.id)
		require.Len(t, getJSON[Timeline](t, patient.path()+"/timeline").Items, 201)
	})

	t.Run("of a patient without interactions is empty", func(t *testing.T) {
		body := api.get(t, newPatient(t).path()+"/timeline").body
		require.JSONEq(t, `{"health_status": "unknown", "items": []}`, body)
	})

	t.Run("of a patient who does not exist is not found", func(t *testing.T) {
		expectProblem(t, api.get(t, "/patients/999999/timeline"), 404)
	})
}

func TestService(t *testing.T) {
	t.Parallel()

	t.Run("is alive and ready", func(t *testing.T) {
		require.JSONEq(t, `{"status": "ok"}`, api.get(t, "/livez").body)
		require.JSONEq(t, `{"status": "ok"}`, api.get(t, "/readyz?probe=1").body)
	})

	t.Run("redirects from / to Swagger UI", func(t *testing.T) {
		response := api.get(t, "/")
		require.Equal(t, 302, response.status)
		require.Equal(t, "/docs/", response.header.Get("Location"))
	})
}

// The rules of all operations

func TestPagination(t *testing.T) {
	t.Parallel()
	lists := []string{"/doctors", "/patients", "/patients/1/interactions"}

	t.Run("has 50 items by default, and up to 100", func(t *testing.T) {
		patient := newPatient(t)
		execute(t, `INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes)
			SELECT $1, 1, '2024-01-01', 'healthy', n::text FROM generate_series(1, 101) n`, patient.id)

		for _, test := range []struct {
			limit string
			items int
		}{
			{"", 50},
			{"1", 1},
			{"51", 51},
			{"100", 100},
		} {
			page := getJSON[Page[Interaction]](t, patient.interactionsPath()+"?limit="+test.limit)
			require.Len(t, page.Items, test.items)
			require.NotNil(t, page.NextCursor)
		}
		require.Len(t, allPages[Interaction](t, patient.interactionsPath()+"?limit=100"), 101)
	})

	t.Run("has 50 patients by default, and up to 100", func(t *testing.T) {
		tag := rand.Text()
		execute(t, `INSERT INTO patients (name, birth_date)
			SELECT n || ' ' || $1, '2000-01-01' FROM generate_series(1, 101) n`, tag)
		require.Len(t, getJSON[Page[Patient]](t, "/patients?search="+tag).Items, 50)
		require.Len(t, getJSON[Page[Patient]](t, "/patients?limit=100&search="+tag).Items, 100)
	})

	t.Run("has a cursor that contains the last id and nothing else", func(t *testing.T) {
		page := getJSON[Page[Patient]](t, "/patients?limit=2")
		require.Equal(t, strconv.FormatInt(page.Items[1].ID, 10), *page.NextCursor)
	})

	t.Run("has no next cursor on a last page that is full", func(t *testing.T) {
		patient := newPatient(t)
		patient.document(healthy, january(1))
		patient.document(healthy, january(2))
		require.Nil(t, getJSON[Page[Interaction]](t, patient.interactionsPath()+"?limit=2").NextCursor)
	})

	t.Run("has empty items, not null, if there are none", func(t *testing.T) {
		empty := `{"items": [], "next_cursor": null}`
		require.JSONEq(t, empty, api.get(t, newPatient(t).interactionsPath()).body)
		require.JSONEq(t, empty, api.get(t, "/patients?search="+rand.Text()).body)
		require.JSONEq(t, empty, api.get(t, "/doctors?cursor=999999999999999999").body)
	})

	t.Run("interactions added or amended while paging neither repeat nor hide others", func(t *testing.T) {
		patient := newPatient(t)
		var days []Interaction
		for day := range 6 {
			days = append(days, patient.document(healthy, january(day+1)))
		}
		list := patient.interactionsPath() + "?limit=2"
		first := getJSON[Page[Interaction]](t, list) // january 6 and 5

		patient.document(healthy, january(9))
		late := patient.document(healthy, january(4))
		patient.amend(days[4], unhealthy) // the cursor's own interaction
		patient.amend(days[2], enteredInError)
		rest := pagesAfter[Interaction](t, list, *first.NextCursor)

		require.Equal(t, []int64{days[5].ID, days[4].ID}, interactionIDs(first.Items))
		require.Equal(t, []int64{late.ID, days[3].ID, days[1].ID, days[0].ID}, interactionIDs(rest))
	})

	t.Run("a cursor marks its position even if the filter hides its interaction", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))
		second := patient.document(unhealthy, january(2))
		require.Equal(t, []int64{first.ID}, patient.history(fmt.Sprintf("outcome=healthy&cursor=%d", second.ID)))
	})

	t.Run("a cursor that is not in the list yields an empty page", func(t *testing.T) {
		patient, other := newPatient(t), newPatient(t)
		patient.document(healthy, january(1))
		elsewhere := other.document(healthy, january(2))
		require.Empty(t, patient.history(fmt.Sprintf("cursor=%d", elsewhere.ID)))
		require.Empty(t, getJSON[Page[Patient]](t, "/patients?cursor=999999999999999999").Items)
	})

	t.Run("refuses a limit that is not an integer from 1 to 100", func(t *testing.T) {
		for _, list := range lists {
			for _, limit := range []string{
				"0", "101", "-1", "1.5", "x", "null", "%201", "01", "%2B1", "9999999999999999999",
			} {
				problem := expectFaults(t, api.get(t, list+"?limit="+limit), "limit")
				require.Equal(t, "must be an integer from 1 to 100", problem.Errors[0].Detail)
			}
		}
	})

	t.Run("refuses a cursor that is not an id of up to 18 digits", func(t *testing.T) {
		for _, list := range lists {
			for _, cursor := range []string{"x", "0", "-1", "01", "1.5", "%2B1", "1%20", "1000000000000000000"} {
				problem := expectFaults(t, api.get(t, list+"?cursor="+cursor), "cursor")
				require.Equal(t, "must be the next_cursor of the previous page", problem.Errors[0].Detail)
			}
		}
	})
}

func TestRetries(t *testing.T) {
	t.Parallel()

	t.Run("a repeated request returns the interaction of the first time as it is now", func(t *testing.T) {
		patient := newPatient(t)
		body := interactionBody(fields{"notes": " Fever. ", "occurred_at": "2024-05-13T11:30:00+02:00"})
		first := expectCreated(t, api.postWith(t, withKey("k"), patient.interactionsPath(), body))
		amendment := patient.amend(first, unhealthy)
		first.AmendedBy = &amendment.ID

		for _, repeated := range []string{
			body,
			interactionBody(fields{"notes": "Fever.", "occurred_at": "2024-05-13T09:30:00.0000009Z"}),
			interactionBody(fields{"notes": "Fever."}),
		} {
			response := api.postWith(t, withKey("k"), patient.interactionsPath(), repeated)
			require.Equal(t, first, expectCreated(t, response))
			require.Equal(t, patient.interactionPath(first.ID), response.header.Get("Location"))
		}
		require.Equal(t, []int64{amendment.ID, first.ID}, patient.history("include_amended=true"))
	})

	t.Run("a repeated amendment returns the amendment of the first time", func(t *testing.T) {
		patient := newPatient(t)
		amended := patient.document(healthy, january(1))
		path := patient.amendmentsPath(amended.ID)
		first := expectCreated(t, api.postWith(t, withKey("k"), path, interactionBody()))

		for _, repeated := range []string{interactionBody(), interactionBody(fields{"occurred_at": january(1)})} {
			require.Equal(t, first, expectCreated(t, api.postWith(t, withKey("k"), path, repeated)))
		}
		require.Len(t, patient.history("include_amended=true"), 2)
	})

	t.Run("a key of another request is refused", func(t *testing.T) {
		patient := newPatient(t)
		first := expectCreated(t, api.postWith(t, withKey("k"), patient.interactionsPath(), interactionBody()))
		path := patient.amendmentsPath(first.ID)
		amendment := expectCreated(t, api.postWith(t, withKey("a"), path, interactionBody()))

		for _, test := range []struct {
			difference string
			key        string
			path       string
			body       string
		}{
			{"doctor", "k", patient.interactionsPath(), interactionBody(fields{"doctor_id": 2})},
			{"outcome", "k", patient.interactionsPath(), interactionBody(fields{"outcome": unhealthy})},
			{"notes", "k", patient.interactionsPath(), interactionBody(fields{"notes": "Other."})},
			{"time", "k", patient.interactionsPath(), interactionBody(fields{"occurred_at": january(1)})},
			{"an amendment for an interaction", "k", path, interactionBody()},
			{"an interaction for an amendment", "a", patient.interactionsPath(), interactionBody()},
			{"amended interaction", "a", patient.amendmentsPath(amendment.ID), interactionBody()},
		} {
			t.Run(test.difference, func(t *testing.T) {
				expectFaults(t, api.postWith(t, withKey(test.key), test.path, test.body), "Idempotency-Key")
			})
		}
		require.Len(t, patient.history("include_amended=true"), 2)
	})

	t.Run("patients do not share keys", func(t *testing.T) {
		patient, other := newPatient(t), newPatient(t)
		first := expectCreated(t, api.postWith(t, withKey("k"), patient.interactionsPath(), interactionBody()))
		second := expectCreated(t, api.postWith(t, withKey("k"), other.interactionsPath(), interactionBody()))
		require.NotEqual(t, first.ID, second.ID)
	})

	t.Run("a refused request does not use up its key", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))
		second := patient.amend(first, healthy)
		path := patient.interactionsPath()
		require.Equal(t, 422, api.postWith(t, withKey("k"), path, interactionBody(fields{"doctor_id": 999999})).status)
		require.Equal(t, 422, api.postWith(t, withKey("k"), path, interactionBody(fields{"notes": ""})).status)
		require.Equal(t, 404, api.postWith(t, withKey("k"), patient.amendmentsPath(1), interactionBody()).status)
		require.Equal(t, 409, api.postWith(t, withKey("k"), patient.amendmentsPath(first.ID), interactionBody()).status)

		path = patient.amendmentsPath(second.ID)
		require.Equal(t, 201, api.postWith(t, withKey("k"), path, interactionBody()).status)
	})

	t.Run("a key has 1 to 255 visible ASCII characters", func(t *testing.T) {
		patient := newPatient(t)
		longest := strings.Repeat("!~", 127) + "k"
		require.Equal(t, 201, api.postWith(t, withKey(longest), patient.interactionsPath(), interactionBody()).status)
		for _, refused := range []string{"", longest + "k", "schlüssel", "a b", "a\tb", "\xff"} {
			response := api.postWith(t, withKey(refused), patient.interactionsPath(), interactionBody())
			expectFaults(t, response, "Idempotency-Key")
		}
	})

	t.Run("a key is given only once", func(t *testing.T) {
		patient := newPatient(t)
		twice := http.Header{"Idempotency-Key": {"k", "k"}}
		expectFaults(t, api.postWith(t, twice, patient.interactionsPath(), interactionBody()), "Idempotency-Key")
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()

	t.Run("notes are returned as sent, but for white space around them", func(t *testing.T) {
		const whiteSpace = " \t\r\n\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u3000"
		for _, notes := range []string{
			"x \n y",
			`<b>&amp; "quoted" \ud800 %s 'x'; --`,
			"\u200bzero width\ufeff",
			"trv", // the letters of escape sequences, which a wrong trim would remove
		} {
			interaction := newPatient(t).post(fields{"notes": whiteSpace + notes + whiteSpace})
			require.Equal(t, notes, interaction.Notes)
		}
	})

	t.Run("notes have up to 10,000 characters, however they are escaped", func(t *testing.T) {
		patient := newPatient(t)
		for character, escaped := range map[string]string{"x": "x", "ä": `\u00e4`, "😀": `\uD83d\ude00`} {
			longest := strings.Repeat(escaped, 10_000)
			body := `{"doctor_id": 1, "outcome": "healthy", "notes": "  ` + longest + `  "}`
			interaction := expectCreated(t, api.post(t, patient.interactionsPath(), body))
			require.Equal(t, strings.Repeat(character, 10_000), interaction.Notes)
		}
		tooLong := interactionBody(fields{"notes": strings.Repeat("ä", 10_001)})
		expectFaults(t, api.post(t, patient.interactionsPath(), tooLong), "notes")
	})

	t.Run("a body has up to 128 KiB", func(t *testing.T) {
		patient, body := newPatient(t), interactionBody()
		largest := body + strings.Repeat(" ", 128<<10-len(body))
		require.Equal(t, 201, api.post(t, patient.interactionsPath(), largest).status)
		expectProblem(t, api.post(t, patient.interactionsPath(), largest+" "), 413)
		expectProblem(t, api.post(t, patient.interactionsPath(), strings.Repeat("{", 200_000)), 413)
	})

	t.Run("occurred_at lies between the birth date and 5 minutes from now", func(t *testing.T) {
		patient := newPatient(t) // born on 1980-01-31, which begins at 10:00 UTC of the day before in UTC+14
		inTime := time.Now().Add(5*time.Minute - 10*time.Second)
		for _, accepted := range []string{
			"1980-01-30T10:00:00Z",
			"1980-01-31T00:00:00+14:00",
			inTime.Format(time.RFC3339),
		} {
			patient.post(fields{"occurred_at": accepted})
		}

		tooLate := time.Now().Add(5*time.Minute + 10*time.Second)
		for _, test := range []struct{ occurredAt, detail string }{
			{"1980-01-30T09:59:59.999999Z", "must not be before the patient's birth date"},
			{"0001-01-01T00:00:00Z", "must not be before the patient's birth date"},
			{"0000-01-01T00:00:00Z", "must not be before the patient's birth date"},
			{tooLate.Format(time.RFC3339), "must be at most 5 minutes in the future"},
			{"9999-12-31T23:59:59Z", "must be at most 5 minutes in the future"},
		} {
			body := interactionBody(fields{"occurred_at": test.occurredAt})
			problem := expectFaults(t, api.post(t, patient.interactionsPath(), body), "occurred_at")
			require.Equal(t, test.detail, problem.Errors[0].Detail, test.occurredAt)
		}
	})

	t.Run("a patient who is not born yet has no interactions", func(t *testing.T) {
		patient := newPatient(t)
		patient.correctBirthDate(time.Now().AddDate(0, 0, 3).Format(time.DateOnly))
		expectFaults(t, api.post(t, patient.interactionsPath(), interactionBody()), "occurred_at")
	})
}

func TestValidation(t *testing.T) {
	t.Parallel()

	t.Run("names faulty query parameters in the order of the document, then unknown ones", func(t *testing.T) {
		list := "/patients/0/interactions?b=1&a=1&cursor=x&limit=0&from=x&outcome=x"
		expectFaults(t, api.get(t, list), "patient_id", "outcome", "from", "limit", "cursor", "a", "b")
	})

	t.Run("comes before what only the database can tell", func(t *testing.T) {
		faulty := interactionBody(fields{"doctor_id": 999999, "notes": ""})
		expectFaults(t, api.post(t, "/patients/999999/interactions", faulty), "notes")
	})

	t.Run("names every faulty field at once: path, header, body, and then unknown names", func(t *testing.T) {
		header := withKey("a b")
		body := `{"x": 1, "A": 1,
			"doctor_id": "1", "outcome": "ill", "notes": " ", "occurred_at": "2024-05-13T09:30:00"}`

		response := api.postWith(t, header, "/patients/0/interactions?q=1", body)

		problem := expectProblem(t, response, 422)
		require.Equal(t, "Validation failed; see errors.", problem.Detail)
		require.Equal(t, []FieldError{
			{"patient_id", "must be an integer from 1 to 9223372036854775807"},
			{"Idempotency-Key", "must be 1 to 255 visible ASCII characters"},
			{"doctor_id", "must be an integer from 1 to 9223372036854775807"},
			{"outcome", "must be one of healthy, unhealthy"},
			{"notes", "must not be empty"},
			{"occurred_at", "must be a time with an offset, such as 2024-05-13T09:30:00Z"},
			{"A", "is not a field of this body"},
			{"q", "is not a query parameter of this operation"},
			{"x", "is not a field of this body"},
		}, problem.Errors)
	})

	t.Run("names every missing field", func(t *testing.T) {
		for _, body := range []string{
			`{}`,
			`{"doctor_id": null, "outcome": null, "notes": null, "occurred_at": null}`,
		} {
			problem := expectFaults(t, api.post(t, "/patients/1/interactions", body), "doctor_id", "outcome", "notes")
			require.Equal(t, "is required", problem.Errors[0].Detail)
		}
	})

	t.Run("refuses ids that are not positive integers", func(t *testing.T) {
		for _, id := range []string{
			"x", "0", "-1", "1.5", "null", "+1", "01", "9223372036854775808", "%00", "%20", "1%2F",
		} {
			expectFaults(t, api.get(t, "/patients/"+id), "patient_id")
			expectFaults(t, api.get(t, "/patients/"+id+"/timeline"), "patient_id")
			expectFaults(t, api.get(t, "/patients/"+id+"/interactions"), "patient_id")
			interaction := "/patients/1/interactions/" + id
			expectFaults(t, api.get(t, interaction), "interaction_id")
			expectFaults(t, api.post(t, interaction+"/amendments", interactionBody()), "interaction_id")
		}
	})

	t.Run("refuses unknown and repeated query parameters", func(t *testing.T) {
		for _, path := range []string{
			"/doctors",
			"/patients",
			"/patients/1",
			"/patients/1/timeline",
			"/patients/1/interactions",
			"/patients/1/interactions/1",
		} {
			expectFaults(t, api.get(t, path+"?colour=1"), "colour")
			expectFaults(t, api.get(t, path+"?colour="), "colour")
			expectFaults(t, api.get(t, path+"?Limit=1"), "Limit")
		}
		expectFaults(t, api.get(t, "/doctors?limit=1&limit=1"), "limit")
		expectFaults(t, api.get(t, "/doctors?limit=&limit="), "limit")
		expectFaults(t, api.get(t, "/patients/1/interactions?from=&from="), "from")
	})

	t.Run("refuses malformed query parameters", func(t *testing.T) {
		for _, query := range []string{
			"/patients?search=%00",
			"/patients?health_status=ill",
			"/patients?health_status=entered_in_error",
			"/patients?doctor_id=0",
			"/patients?doctor_id=x",
			"/patients/1/interactions?outcome=unknown",
			"/patients/1/interactions?doctor_id=9223372036854775808",
			"/patients/1/interactions?include_amended=1",
			"/patients/1/interactions?include_amended=True",
			"/patients/1/interactions?from=2024-01-01",
			"/patients/1/interactions?from=2024-01-01T00:00:00",
			"/patients/1/interactions?from=2024-01-01T00:00:00+01:00", // in a URL, + is a blank
			"/patients/1/interactions?to=2024-01-01T25:00:00Z",
		} {
			_, parameter, _ := strings.Cut(query, "?")
			name, _, _ := strings.Cut(parameter, "=")
			expectFaults(t, api.get(t, query), name)
		}
	})

	t.Run("refuses a faulty body field, whatever is wrong with it", func(t *testing.T) {
		patient := newPatient(t)
		for _, test := range []struct{ field, json string }{
			{"doctor_id", `"1"`},
			{"doctor_id", `1.0`},
			{"doctor_id", `1e2`},
			{"doctor_id", `0`},
			{"doctor_id", `-0`},
			{"doctor_id", `9223372036854775808`},
			{"doctor_id", `[1]`},
			{"outcome", `true`},
			{"outcome", `{}`},
			{"outcome", `""`},
			{"outcome", `"Healthy"`},
			{"outcome", `" healthy"`},
			{"outcome", `"unknown"`},
			{"outcome", `"entered_in_error"`},
			{"notes", `1`},
			{"notes", `""`},
			{"notes", `" \n\u2003"`},
			{"notes", `"a\u0000b"`},
			{"occurred_at", `1`},
			{"occurred_at", `false`},
			{"occurred_at", `""`},
			{"occurred_at", `"yesterday"`},
			{"occurred_at", `"2024-05-13"`},
			{"occurred_at", `"2024-02-30T09:30:00Z"`},
			{"occurred_at", `"2024-05-13T9:30:00Z"`},
			{"occurred_at", `"2024-05-13T09:30:00,5Z"`},
			{"occurred_at", `"2024-05-13T09:30:00+24:00"`},
			{"occurred_at", `"2024-05-13T09:30:00+23:60"`},
		} {
			body := interactionBody(fields{test.field: json.RawMessage(test.json)})
			problem := expectFaults(t, api.post(t, patient.interactionsPath(), body), test.field)
			require.NotEmpty(t, problem.Errors[0].Detail)
		}
		require.Empty(t, patient.history("include_amended=true"))
	})

	t.Run("matches the names of body fields exactly", func(t *testing.T) {
		path := newPatient(t).interactionsPath()
		body := `{"doctor_id": 1, "DOCTOR_ID": 2, "outcome": "healthy", "notes": "x"}`
		expectFaults(t, api.post(t, path, body), "DOCTOR_ID")
		for _, unknown := range []string{"patient_id", "Idempotency-Key", "IdempotencyKey", "noteſ"} {
			expectFaults(t, api.post(t, path, interactionBody(fields{unknown: nil})), unknown)
		}
	})

	t.Run("takes the last value of a repeated body field", func(t *testing.T) {
		body := `{"doctor_id": 1, "outcome": "healthy", "notes": "first", "notes": "last"}`
		require.Equal(t, "last", expectCreated(t, api.post(t, newPatient(t).interactionsPath(), body)).Notes)
	})
}

func TestErrors(t *testing.T) {
	t.Parallel()

	t.Run("a query string that cannot be parsed or is not UTF-8 is malformed", func(t *testing.T) {
		for _, query := range []string{"search=%zz", "a=1;b=2", "search=%ff", "%ff=1"} {
			expectProblem(t, api.get(t, "/patients?"+query), 400)
		}
	})

	t.Run("a body that is not one JSON object in UTF-8 is malformed", func(t *testing.T) {
		patient := newPatient(t)
		for _, body := range []string{
			"",
			" ",
			"notes=x",
			`{"notes": "x"`,
			"\ufeff" + interactionBody(),
			"null",
			"[]",
			`"x"`,
			"1",
			interactionBody() + interactionBody(),
			interactionBody() + "]",
			`{"notes": "` + "\xff" + `"}`,
		} {
			expectProblem(t, api.post(t, patient.interactionsPath(), body), 400)
		}
		require.Empty(t, patient.history("include_amended=true"))
	})

	t.Run("a body must be application/json", func(t *testing.T) {
		patient := newPatient(t)
		contentType := func(value string) http.Header { return http.Header{"Content-Type": {value}} }
		for _, refused := range []string{"", "text/plain", "application/jsonp", "application/json; charset"} {
			expectProblem(t, api.postWith(t, contentType(refused), patient.interactionsPath(), interactionBody()), 415)
		}
		accepted := contentType("Application/JSON; charset=utf-8")
		require.Equal(t, 201, api.postWith(t, accepted, patient.interactionsPath(), interactionBody()).status)
	})

	t.Run("another web page may read but not write", func(t *testing.T) {
		patient := newPatient(t)
		for _, header := range []http.Header{
			{"Sec-Fetch-Site": {"cross-site"}},
			{"Sec-Fetch-Site": {"same-site"}},
			{"Origin": {"https://example.org"}},
			{"Origin": {"null"}},
		} {
			expectProblem(t, api.postWith(t, header, patient.interactionsPath(), interactionBody()), 403)
			require.Equal(t, 200, api.request(t, "GET", patient.path(), "", header).status)
		}
		require.Empty(t, patient.history(""))
		for _, header := range []http.Header{{"Sec-Fetch-Site": {"same-origin"}}, {"Origin": {api.url}}} {
			require.Equal(t, 201, api.postWith(t, header, patient.interactionsPath(), interactionBody()).status)
		}
	})

	t.Run("an unknown path is not found", func(t *testing.T) {
		for _, path := range []string{"/nothing", "/patients/", "/patients/1/", "/patients/1/nothing", "/doctors/1"} {
			expectProblem(t, api.get(t, path), 404)
		}
	})

	t.Run("a method that a path does not support is refused with those that it supports", func(t *testing.T) {
		for _, test := range []struct{ path, allow string }{
			{"/", "GET, HEAD"},
			{"/docs/", "GET, HEAD"},
			{"/openapi.json", "GET, HEAD"},
			{"/livez", "GET, HEAD"},
			{"/readyz", "GET, HEAD"},
			{"/doctors", "GET, HEAD"},
			{"/patients", "GET, HEAD"},
			{"/patients/1", "GET, HEAD"},
			{"/patients/1/timeline", "GET, HEAD"},
			{"/patients/1/interactions", "GET, HEAD, POST"},
			{"/patients/1/interactions/1", "GET, HEAD"},
			{"/patients/1/interactions/1/amendments", "POST"},
		} {
			for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
				if strings.Contains(test.allow, method) {
					continue
				}
				response := api.request(t, method, test.path, "", nil)
				expectProblem(t, response, 405)
				require.Equal(t, test.allow, response.header.Get("Allow"), "%s %s", method, test.path)
			}
		}
	})

	t.Run("a defect of the service is a 500 that only the log explains", func(t *testing.T) {
		broken := newService(t, nil) // without a store every operation panics

		problem := expectProblem(t, broken.get(t, "/doctors"), 500)

		require.Equal(t, "Internal error. Please report it with the X-Request-Id.", problem.Detail)
		require.Equal(t, 200, broken.get(t, "/livez").status)
		logged := `level=ERROR msg="request failed" error="panic: [^\n]*store\.go[^\n]* request_id=\w+`
		require.Regexp(t, logged, broken.log.String())
	})
}

func TestResponseHeaders(t *testing.T) {
	t.Parallel()

	t.Run("forbid caching and embedding, of GET and HEAD alike", func(t *testing.T) {
		for _, path := range []string{"/patients/1", "/livez", "/openapi.json", "/nothing", "/patients/x"} {
			get, head := api.get(t, path), api.request(t, "HEAD", path, "", nil)
			require.Equal(t, get.status, head.status)
			require.Empty(t, head.body)
			for _, response := range []httpResponse{get, head} {
				require.Equal(t, "no-store", response.header.Get("Cache-Control"))
				require.Equal(t, "nosniff", response.header.Get("X-Content-Type-Options"))
				policy := response.header.Get("Content-Security-Policy")
				require.Equal(t, "default-src 'none'; frame-ancestors 'none'", policy)
				require.Equal(t, strconv.Itoa(len(get.body)), response.header.Get("Content-Length"))
			}
		}
	})

	t.Run("have a new X-Request-Id each time", func(t *testing.T) {
		first, second := api.get(t, "/livez"), api.get(t, "/livez")
		require.NotEmpty(t, first.header.Get("X-Request-Id"))
		require.NotEqual(t, first.header.Get("X-Request-Id"), second.header.Get("X-Request-Id"))
	})
}

// Concurrent clients

func TestConcurrentClients(t *testing.T) {
	t.Parallel()

	t.Run("twenty copies of a request create one interaction", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))
		for _, path := range []string{patient.interactionsPath(), patient.amendmentsPath(first.ID)} {
			before := len(patient.history("include_amended=true"))

			responses := concurrently(t, 20, func(int) (httpResponse, error) {
				return api.send("POST", path, interactionBody(), withKey(path))
			})

			ids := map[int64]bool{}
			for _, response := range responses {
				ids[expectCreated(t, response).ID] = true
			}
			require.Len(t, ids, 1)
			require.Len(t, patient.history("include_amended=true"), before+1)
		}
	})

	t.Run("one of several amendments wins, and the others learn which", func(t *testing.T) {
		patient := newPatient(t)
		first := patient.document(healthy, january(1))

		responses := concurrently(t, 10, func(int) (httpResponse, error) {
			return api.send("POST", patient.amendmentsPath(first.ID), interactionBody(), nil)
		})

		winners := patient.history("")
		require.Len(t, winners, 1)
		conflicts := 0
		for _, response := range responses {
			if response.status != 201 {
				conflicts++
				problem := expectProblem(t, response, 409)
				require.Contains(t, problem.Detail, fmt.Sprintf("by interaction %d.", winners[0]))
			}
		}
		require.Equal(t, 9, conflicts)
	})

	t.Run("many writers of one patient lose nothing, and change no list that they are not in", func(t *testing.T) {
		patient := newPatient(t)
		for day := range 10 {
			patient.document(healthy, january(day+1))
		}
		old := patient.history("")

		pages := concurrently(t, 8, func(int) (httpResponse, error) {
			for day := range 8 {
				body := interactionBody(fields{"outcome": unhealthy, "occurred_at": january(day + 1)})
				response, err := api.send("POST", patient.interactionsPath(), body, nil)
				if err != nil || response.status != 201 {
					return response, err
				}
			}
			return api.send("GET", patient.interactionsPath()+"?outcome=healthy", "", nil)
		})

		for _, page := range pages {
			require.Equal(t, old, interactionIDs(parseJSON[Page[Interaction]](t, page.body).Items))
		}
		require.Len(t, patient.history("limit=100"), 10+8*8)
		require.Equal(t, healthy, getJSON[Patient](t, patient.path()).HealthStatus, "january 10 is the last")
	})

	t.Run("a request that waited knows a doctor who was added meanwhile", func(t *testing.T) {
		service, isolated := newIsolatedService(t)
		const newDoctor = 1000
		// The same key makes the request wait until the ROLLBACK.
		_, err := isolated.Exec(t.Context(), `BEGIN;
			INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, idempotency_key)
			VALUES (12, 1, now(), 'healthy', 'x', 'k')`)
		require.NoError(t, err)
		waiting := make(chan httpResponse, 1)
		go func() {
			body := interactionBody(fields{"doctor_id": newDoctor})
			key := withKey("k")
			response, _ := service.send("POST", "/patients/12/interactions", body, key)
			waiting <- response
		}()
		waitForLockIn(t, isolated.Config().Database)

		other, err := pgx.Connect(t.Context(), isolated.Config().ConnString())
		require.NoError(t, err)
		defer other.Close(t.Context())
		_, err = other.Exec(t.Context(), `INSERT INTO doctors (id, name, specialty) OVERRIDING SYSTEM VALUE
			VALUES ($1, 'Dr. New', 'x')`, newDoctor)
		require.NoError(t, err)
		_, err = isolated.Exec(t.Context(), "ROLLBACK")
		require.NoError(t, err)

		require.Equal(t, DoctorReference{newDoctor, "Dr. New"}, expectCreated(t, <-waiting).Doctor)
	})
}

// The log

func TestLog(t *testing.T) {
	t.Parallel()
	const secret = "Grimsvotn"

	t.Run("has one line per request, without any value of the request", func(t *testing.T) {
		service := newService(t, openStore(t, serviceURL))
		patient := newPatientNamed(t, secret)
		header := http.Header{"Idempotency-Key": {secret}, "X-Request-Id": {secret}}

		faulty := interactionBody(fields{"outcome": secret})
		interactions := "POST /patients/{patient_id}/interactions"
		for _, test := range []struct{ method, path, body, route, status string }{
			{"GET", "/patients?search=" + secret, "", "GET /patients", "200"},
			{"GET", "/patients?" + secret + "=1", "", "GET /patients", "422"},
			{"GET", "/patients/" + secret + "/timeline", "", "GET /patients/{patient_id}/timeline", "422"},
			{"POST", patient.interactionsPath(), interactionBody(fields{"notes": secret}), interactions, "201"},
			{"POST", patient.interactionsPath(), faulty, interactions, "422"},
			{"GET", "/" + secret, "", "/", "404"},
			{"DELETE", "/patients/" + secret, "", "/patients/{patient_id}", "405"},
		} {
			id := service.request(t, test.method, test.path, test.body, header).header.Get("X-Request-Id")
			lines := regexp.MustCompile(`.*`+id+`.*`).FindAllString(service.log.String(), -1)
			require.Len(t, lines, 1)
			require.Regexp(t, `^time=\S+ level=INFO msg=request method=`+test.method+` route="?`+
				regexp.QuoteMeta(test.route)+`"? status=`+test.status+` duration=\S+ request_id=\w+$`, lines[0])
		}
		require.NotContains(t, service.log.String(), secret)
	})

	t.Run("has the cause of a 503, without any value of the request", func(t *testing.T) {
		service := newService(t, openStore(t, serviceURL))
		patient := newPatientNamed(t, secret)
		defer patient.lock()()

		response := service.post(t, patient.interactionsPath(), interactionBody(fields{"notes": secret}))

		expectProblem(t, response, 503)
		id := response.header.Get("X-Request-Id")
		logged := `level=ERROR msg="request failed" error=".*SQLSTATE 55P03.*" request_id=` + id
		require.Regexp(t, logged, service.log.String())
		require.NotContains(t, service.log.String(), secret)
	})

	t.Run("does not call it an error if a client hangs up", func(t *testing.T) {
		service := newService(t, openStore(t, serviceURL))
		patient := newPatient(t)
		defer patient.lock()()

		ctx, hangUp := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer hangUp()
		address, body := service.url+patient.interactionsPath(), strings.NewReader(interactionBody())
		request, err := http.NewRequestWithContext(ctx, "POST", address, body)
		require.NoError(t, err)
		request.Header.Set("Content-Type", "application/json")
		_, err = http.DefaultClient.Do(request)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		isLogged := func() bool { return strings.Contains(service.log.String(), "status=499") }
		require.Eventually(t, isLogged, 5*time.Second, time.Millisecond)
		require.NotContains(t, service.log.String(), "level=ERROR")
	})
}

// The OpenAPI document and Swagger UI

func TestOpenAPIDocument(t *testing.T) {
	t.Parallel()
	var document openAPI
	require.NoError(t, json.Unmarshal([]byte(api.get(t, "/openapi.json").body), &document))

	t.Run("is OpenAPI 3.1", func(t *testing.T) {
		require.Regexp(t, `^3\.1\.`, document.OpenAPI)
	})

	t.Run("lists every operation with its responses", func(t *testing.T) {
		responses := map[string][]string{}
		for path, operations := range document.Paths {
			for method, operation := range operations {
				responses[strings.ToUpper(method)+" "+path] = slices.Sorted(maps.Keys(operation.Responses))
			}
		}

		interaction := "/patients/{patient_id}/interactions/{interaction_id}"
		require.Equal(t, map[string][]string{
			"GET /doctors":                             {"200", "422", "4XX", "503"},
			"GET /patients":                            {"200", "422", "4XX", "503"},
			"GET /patients/{patient_id}":               {"200", "404", "422", "4XX", "503"},
			"GET /patients/{patient_id}/timeline":      {"200", "404", "422", "4XX", "503"},
			"GET /patients/{patient_id}/interactions":  {"200", "404", "422", "4XX", "503"},
			"POST /patients/{patient_id}/interactions": {"201", "404", "422", "4XX", "503"},
			"GET " + interaction:                       {"200", "404", "422", "4XX", "503"},
			"POST " + interaction + "/amendments":      {"201", "404", "409", "422", "4XX", "503"},
			"GET /livez":                               {"200", "4XX"},
			"GET /readyz":                              {"200", "4XX", "503"},
		}, responses)
	})

	t.Run("describes every operation, parameter and problem", func(t *testing.T) {
		ids := map[string]bool{}
		for path, operations := range document.Paths {
			for method, operation := range operations {
				name := method + " " + path
				ids[operation.OperationID] = true
				require.NotEmpty(t, operation.Summary, name)
				require.NotEmpty(t, operation.Description, name)
				require.Len(t, operation.Tags, 1, name)
				for _, parameter := range operation.Parameters {
					require.NotEmpty(t, parameter.Description, "%s %s", name, parameter.Name)
				}
				for status, response := range operation.Responses {
					require.NotEmpty(t, response.Description, "%s %s", name, status)
					if example, ok := response.Content["application/problem+json"]; ok && status != "4XX" {
						require.EqualValues(t, status, fmt.Sprint(example.Example["status"]), name)
					}
				}
			}
		}
		require.Len(t, ids, 10, "operation ids are unique")
	})

	t.Run("documents headers, required bodies, and parameters in the order path, query, header", func(t *testing.T) {
		for path, operations := range document.Paths {
			for method, operation := range operations {
				name := method + " " + path
				if unavailable, ok := operation.Responses["503"]; ok {
					require.Contains(t, unavailable.Headers, "Retry-After", name)
				}
				if method == "post" {
					require.Contains(t, operation.Responses["201"].Headers, "Location", name)
					require.True(t, operation.RequestBody.Required, name)
				}
				places := []string{}
				for _, parameter := range operation.Parameters {
					places = append(places, parameter.In)
				}
				require.Regexp(t, `^(path )*(query )*(header )*$`, strings.Join(append(places, ""), " "), name)
			}
		}
	})

	t.Run("has examples that work unedited on the sample data", func(t *testing.T) {
		service, _ := newIsolatedService(t)
		for path, operations := range document.Paths {
			for method, operation := range operations {
				address, body := operation.exampleRequest(t, path)
				response := service.request(t, strings.ToUpper(method), address, body, nil)
				require.Less(t, response.status, 300, "%s %s: %s", method, address, response.body)

				reference := operation.Responses[strconv.Itoa(response.status)].Content["application/json"].Schema.Ref
				schema := document.Components.Schemas[strings.TrimPrefix(reference, "#/components/schemas/")]
				documented := slices.Sorted(maps.Keys(schema.Properties))
				answered := slices.Sorted(maps.Keys(parseJSON[map[string]any](t, response.body)))
				require.Equal(t, documented, answered, path)
			}
		}
	})

	t.Run("requires all properties but the optional ones, and says which can be null", func(t *testing.T) {
		optional := []string{"Problem.errors", "NewInteraction.occurred_at", "NewAmendment.occurred_at"}
		nullable := []string{"Patient.last_interaction_at", "Interaction.amends", "Interaction.amended_by", "Period.to",
			"DoctorPage.next_cursor", "PatientPage.next_cursor", "InteractionPage.next_cursor"}
		for name, schema := range document.Components.Schemas {
			for property, value := range schema.Properties {
				qualified := name + "." + property
				isRequired := slices.Contains(schema.Required, property)
				require.Equal(t, !slices.Contains(optional, qualified), isRequired, qualified)
				types, _ := value.Type.([]any)
				require.Equal(t, slices.Contains(nullable, qualified), slices.Contains(types, any("null")), qualified)
				isTime := regexp.MustCompile(`_at$|^from$|^to$`).MatchString(property)
				require.Equal(t, isTime, value.Format == "date-time", qualified)
			}
		}
	})
}

func TestSwaggerUI(t *testing.T) {
	t.Parallel()
	page := api.get(t, "/docs/")
	require.Equal(t, 200, page.status)

	t.Run("shows the OpenAPI document", func(t *testing.T) {
		require.Contains(t, page.body, "/openapi.json")
	})

	t.Run("loads only files that the service serves", func(t *testing.T) {
		assets := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page.body, -1)
		require.NotEmpty(t, assets)
		for _, asset := range assets {
			require.Regexp(t, "^/docs/", asset[1])
			require.Equal(t, 200, api.get(t, asset[1]).status, asset[1])
		}
	})

	t.Run("has a policy that allows nothing but its own scripts and styles", func(t *testing.T) {
		policy := page.header.Get("Content-Security-Policy")
		require.Contains(t, policy, "default-src 'none'")
		require.NotRegexp(t, `https?:|\*|unsafe`, policy)
		inline := regexp.MustCompile(`(?s)<(script|style)>(.*?)</`).FindAllStringSubmatch(page.body, -1)
		require.NotEmpty(t, inline)
		for _, element := range inline {
			hash := sha256.Sum256([]byte(element[2]))
			source := "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
			require.Regexp(t, element[1]+"-src [^;]*"+regexp.QuoteMeta(source), policy)
		}
	})
}

// The rules of the database, tried by a second writer: another program that writes SQL

func TestSchema(t *testing.T) {
	t.Parallel()
	patient := newPatient(t)
	key := withKey("used")
	expectCreated(t, api.postWith(t, key, patient.interactionsPath(), interactionBody()))
	patientID := strconv.FormatInt(patient.id, 10)
	// The sample data has interaction 57 of patient 5, which is amended.
	valid := map[string]columns{
		"doctors":  {"name": "'x'", "specialty": "'x'"},
		"patients": {"name": "'x'", "birth_date": "'2000-01-01'"},
		"interactions": {
			"patient_id": "5", "doctor_id": "1", "occurred_at": "now()", "outcome": "'healthy'", "notes": "'x'",
		},
	}
	for _, test := range []struct {
		rule   string
		table  string
		faulty columns
	}{
		{"doctors_pkey", "doctors", columns{"id": "1"}},
		{"doctor_name_not_blank", "doctors", columns{"name": "''"}},
		{"doctor_name_not_blank", "doctors", columns{"name": `E' \t'`}},
		{"doctor_specialty_not_blank", "doctors", columns{"specialty": "' '"}},
		{"patients_pkey", "patients", columns{"id": "1"}},
		{"patient_name_not_blank", "patients", columns{"name": "' '"}},
		{"birth_date_has_four_digit_year", "patients", columns{"birth_date": "'10000-01-01'"}},
		{"birth_date_has_four_digit_year", "patients", columns{"birth_date": "'0001-12-31 BC'"}},
		{"birth_date_has_four_digit_year", "patients", columns{"birth_date": "'infinity'"}},
		{"unknown_has_no_last_interaction", "patients", columns{"health_status": "'healthy'"}},
		{"unknown_has_no_last_interaction", "patients", columns{"last_interaction_at": "now()"}},
		{"enum health_status", "patients", columns{"health_status": "'ill'"}},
		{"interactions_pkey", "interactions", columns{"id": "57"}},
		{"interactions_patient", "interactions", columns{"patient_id": "999999"}},
		{"interactions_doctor", "interactions", columns{"doctor_id": "999999"}},
		{"occurred_at_has_four_digit_year", "interactions", columns{"occurred_at": "'infinity'"}},
		{"occurred_at_has_four_digit_year", "interactions", columns{"occurred_at": "'10000-01-01Z'"}},
		{"occurred_at_has_four_digit_year", "interactions", columns{"occurred_at": "'0001-12-31 BC'"}},
		{"enum outcome", "interactions", columns{"outcome": "'ill'"}},
		{"only_an_amendment_strikes_out", "interactions", columns{"outcome": "'entered_in_error'"}},
		{"notes_length", "interactions", columns{"notes": "''"}},
		{"notes_length", "interactions", columns{"notes": "repeat('ä', 10001)"}},
		{"notes_trimmed", "interactions", columns{"notes": "' x'"}},
		{"notes_trimmed", "interactions", columns{"notes": `E'\tx'`}},
		{"notes_trimmed", "interactions", columns{"notes": `E'x\n'`}},
		{"notes_trimmed", "interactions", columns{"notes": `E'\x0Bx'`}},
		{"notes_trimmed", "interactions", columns{"notes": `E'x\f'`}},
		{"notes_trimmed", "interactions", columns{"notes": `E'x\r'`}},
		{"interactions_amends", "interactions", columns{"amends": "1"}}, // an interaction of another patient
		{"interactions_amended_once", "interactions", columns{"amends": "57"}},
		{"amends_an_earlier_interaction", "interactions", columns{"id": "999999", "amends": "999999"}},
		{"interactions_idempotency_key", "interactions", columns{"patient_id": patientID, "idempotency_key": "'used'"}},
		{"idempotency_key_visible_ascii", "interactions", columns{"idempotency_key": "''"}},
		{"idempotency_key_visible_ascii", "interactions", columns{"idempotency_key": "'a b'"}},
		{"idempotency_key_visible_ascii", "interactions", columns{"idempotency_key": "'ä'"}},
		{"idempotency_key_visible_ascii", "interactions", columns{"idempotency_key": "repeat('k', 256)"}},
	} {
		row := maps.Clone(valid[test.table])
		maps.Copy(row, test.faulty)
		t.Run(fmt.Sprintf("%s refuses %v", test.rule, test.faulty), func(t *testing.T) {
			_, err := owner.Exec(t.Context(), row.insertInto(test.table))
			require.ErrorContains(t, err, test.rule)
		})
	}
}

func TestBirthDate(t *testing.T) {
	t.Parallel()
	const insert = `INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, amends)
		VALUES ($1, 1, $2, $3, 'x', $4)`

	t.Run("an interaction can occur once the day has begun in some time zone", func(t *testing.T) {
		patient := newPatient(t)
		patient.correctBirthDate("2024-05-14")
		execute(t, insert, patient.id, "2024-05-13T10:00:00Z", healthy, nil)
	})

	t.Run("an interaction a microsecond earlier is refused, without the date in the message", func(t *testing.T) {
		patient := newPatient(t)
		patient.correctBirthDate("2024-05-14")

		_, err := owner.Exec(t.Context(), insert, patient.id, "2024-05-13T09:59:59.999999Z", healthy, nil)

		refused, ok := errors.AsType[*pgconn.PgError](err)
		require.True(t, ok)
		require.Equal(t, "23514", refused.Code)
		require.Equal(t, `interaction violates rule "occurred_at_not_before_birth"`, refused.Message)
		require.Empty(t, refused.Detail)
	})

	t.Run("an interaction can be struck out after the birth date was corrected", func(t *testing.T) {
		patient := newPatient(t)
		wrong := patient.document(unhealthy, january(1))
		patient.correctBirthDate("2024-02-01")
		execute(t, insert, patient.id, january(1), enteredInError, wrong.ID)
	})
}

func TestSecondWriter(t *testing.T) {
	t.Parallel()
	const insert = `INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, amends)
		VALUES ($1, 1, $2, $3, 'x', $4)`

	// The first writer adds an interaction that changes nothing, and the second one, which waits for the first,
	// strikes out the latest. A transaction of the second writer may have begun before.
	race := func(t *testing.T, level pgx.TxIsoLevel) (patient testPatient, second pgx.Tx, err error) {
		patient = newPatient(t)
		latest := patient.document(healthy, january(9))
		first := beginLikeReplication(t, level)
		second = beginLikeReplication(t, level)
		_, err = first.Exec(t.Context(), insert, patient.id, january(5), unhealthy, nil)
		require.NoError(t, err)

		struckOut := make(chan error, 1)
		go func() {
			_, err := second.Exec(t.Context(), insert, patient.id, january(9), enteredInError, latest.ID)
			struckOut <- err
		}()
		waitForLock(t, second.Conn().PgConn().PID())
		require.NoError(t, first.Commit(t.Context()))
		return patient, second, <-struckOut
	}

	t.Run("in READ COMMITTED sees what a concurrent writer of the patient has committed", func(t *testing.T) {
		patient, second, err := race(t, pgx.ReadCommitted)
		require.NoError(t, err)
		require.NoError(t, second.Commit(t.Context()))
		require.Equal(t, unhealthy, getJSON[Patient](t, patient.path()).HealthStatus)
	})

	t.Run("in REPEATABLE READ fails rather than decide the health status from an old snapshot", func(t *testing.T) {
		_, _, err := race(t, pgx.RepeatableRead)
		require.ErrorContains(t, err, "could not serialize")
	})
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	_, isolated := newIsolatedService(t)
	expectRefused := func(t *testing.T, message, setting string, statements ...string) {
		t.Helper()
		for _, statement := range statements {
			_, err := isolated.Exec(t.Context(), "BEGIN; "+setting+"; "+statement)
			require.ErrorContains(t, err, message, statement)
			_, err = isolated.Exec(t.Context(), "ROLLBACK")
			require.NoError(t, err)
		}
	}
	changes := []string{
		"UPDATE interactions SET notes = 'x'",
		"UPDATE interactions SET notes = 'x' WHERE false",
		"DELETE FROM interactions",
		"TRUNCATE interactions",
		"TRUNCATE patients CASCADE",
	}

	t.Run("nobody can change or delete an interaction", func(t *testing.T) {
		expectRefused(t, "append-only", "SET LOCAL session_replication_role = origin", changes...)
		expectRefused(t, "append-only", "SET LOCAL session_replication_role = replica", changes...)
	})

	t.Run("the service can only read, and insert what a request contains", func(t *testing.T) {
		const role = "SET LOCAL ROLE patient_interactions"
		expectRefused(t, "permission denied", role, changes...)
		expectRefused(t, "permission denied", role,
			"UPDATE patients SET birth_date = '2000-01-01'",
			"UPDATE doctors SET name = 'x'",
			"DELETE FROM patients",
			"DELETE FROM doctors",
			"SELECT FROM patients FOR UPDATE",
			"INSERT INTO patients (name, birth_date) VALUES ('x', '2000-01-01')",
			"INSERT INTO doctors (name, specialty) VALUES ('x', 'x')",
			`INSERT INTO interactions (id, patient_id, doctor_id, occurred_at, outcome, notes)
				OVERRIDING SYSTEM VALUE VALUES (999999, 1, 1, now(), 'healthy', 'x')`,
			`INSERT INTO interactions (recorded_at, patient_id, doctor_id, occurred_at, outcome, notes)
				VALUES (now(), 1, 1, now(), 'healthy', 'x')`,
			"INSERT INTO current_interactions (notes) VALUES ('x')",
			"CREATE TABLE public.x ()",
			"SET session_replication_role = replica",
			"SELECT setval('interactions_id_seq', 1)",
			`CREATE TEMP TABLE x ();
				CREATE TRIGGER x AFTER INSERT ON x FOR EACH ROW EXECUTE FUNCTION apply_to_patient()`,
		)
		expectRefused(t, "must be owner", role,
			"DROP TABLE interactions",
			"ALTER TABLE interactions DISABLE TRIGGER ALL",
			"DROP TRIGGER interactions_append_only ON interactions",
			"DROP FUNCTION refuse_change CASCADE",
		)
	})

	t.Run("the trigger that runs as the owner sees only the owner's tables", func(t *testing.T) {
		var settings []string
		const query = "SELECT array_agg(proconfig[1]) FROM pg_proc WHERE prosecdef"
		err := isolated.QueryRow(t.Context(), query).Scan(&settings)
		require.NoError(t, err)
		require.Equal(t, []string{"search_path=public, pg_temp"}, settings)
	})
}

// A database in trouble

func TestUnavailableDatabase(t *testing.T) {
	t.Parallel()
	silent := listen(t) // accepts connections and never answers
	deserted := listen(t)
	deserted.Close()

	for _, test := range []struct{ name, databaseURL string }{
		{"refuses connections", "postgres://" + deserted.Addr().String() + "/x?sslmode=disable"},
		{"does not answer", "postgres://" + silent.Addr().String() + "/x?sslmode=disable&pool_max_conns=16"},
		{"does not exist", withDatabase(serviceURL, "no_such_database")},
	} {
		t.Run("is a 503 on every operation in time if it "+test.name, func(t *testing.T) {
			t.Parallel()
			service := newService(t, openStore(t, test.databaseURL))
			requests := []struct{ method, path string }{
				{"GET", "/readyz"},
				{"GET", "/doctors"},
				{"GET", "/patients"},
				{"GET", "/patients/1"},
				{"GET", "/patients/1/timeline"},
				{"GET", "/patients/1/interactions"},
				{"GET", "/patients/1/interactions/1"},
				{"POST", "/patients/1/interactions"},
				{"POST", "/patients/1/interactions/1/amendments"},
			}

			start := time.Now()
			responses := concurrently(t, len(requests), func(i int) (httpResponse, error) {
				return service.send(requests[i].method, requests[i].path, interactionBody(), nil)
			})

			require.Less(t, time.Since(start), 3*time.Second)
			for _, response := range responses {
				expectProblem(t, response, 503)
			}
			for _, path := range []string{"/livez", "/openapi.json", "/docs/"} {
				require.Equal(t, 200, service.get(t, path).status)
			}
		})
	}
}

func TestDatabaseInTrouble(t *testing.T) {
	t.Parallel()

	t.Run("a locked patient delays only the patient's writers, and not for long", func(t *testing.T) {
		t.Parallel()
		service := newService(t, openStore(t, serviceURL))
		patient, other := newPatient(t), newPatient(t)
		key := withKey("k")
		unlock := patient.lock()
		defer unlock()

		start := time.Now()
		expectProblem(t, service.postWith(t, key, patient.interactionsPath(), interactionBody()), 503)
		require.WithinRange(t, time.Now(), start.Add(lockTimeout), start.Add(lockTimeout+time.Second))
		require.Equal(t, 200, service.get(t, patient.interactionsPath()).status)
		require.Equal(t, 201, service.post(t, other.interactionsPath(), interactionBody()).status)

		unlock()
		require.Equal(t, 201, service.postWith(t, key, patient.interactionsPath(), interactionBody()).status)
	})

	t.Run("a statement that takes too long is a 503 and ends on the server", func(t *testing.T) {
		t.Parallel()
		service, isolated := newIsolatedService(t)
		makeDoctorsSlow(t, isolated)

		start := time.Now()
		expectProblem(t, service.get(t, "/doctors"), 503)
		require.WithinRange(t, time.Now(), start.Add(3*time.Second), start.Add(4500*time.Millisecond))
		require.Contains(t, service.log.String(), "SQLSTATE 57014")
	})

	t.Run("a request that waits for a connection is a 503 after 4 seconds", func(t *testing.T) {
		t.Parallel()
		_, isolated := newIsolatedService(t)
		makeDoctorsSlow(t, isolated)
		databaseURL := withRole(isolated.Config().ConnString())
		oneConnection := strings.Replace(databaseURL, "pool_max_conns=16", "pool_max_conns=1", 1)
		service := newService(t, openStore(t, oneConnection))

		start := time.Now()
		responses := concurrently(t, 3, func(int) (httpResponse, error) {
			return service.send("GET", "/doctors", "", nil)
		})

		require.WithinRange(t, time.Now(), start.Add(3*time.Second), start.Add(5*time.Second))
		for _, response := range responses {
			expectProblem(t, response, 503)
		}
	})

	t.Run("a full disk is a 503", func(t *testing.T) {
		t.Parallel()
		service, isolated := newIsolatedService(t)
		_, err := isolated.Exec(t.Context(), `
			CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
				$$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
			CREATE TRIGGER fail BEFORE INSERT ON interactions FOR EACH ROW EXECUTE FUNCTION fail()`)
		require.NoError(t, err)
		expectProblem(t, service.post(t, "/patients/1/interactions", interactionBody()), 503)
	})

	t.Run("a write whose connection is cut is a 503, and the next one succeeds", func(t *testing.T) {
		t.Parallel()
		service, isolated := newIsolatedService(t)
		_, err := isolated.Exec(t.Context(), "BEGIN; SELECT FROM patients WHERE id = 1 FOR UPDATE")
		require.NoError(t, err)
		cut := make(chan httpResponse, 1)
		go func() {
			response, _ := service.send("POST", "/patients/1/interactions", interactionBody(), nil)
			cut <- response
		}()

		require.Eventually(t, func() bool {
			const terminate = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE wait_event_type = 'Lock' AND datname = $1`
			terminated, err := owner.Exec(t.Context(), terminate, isolated.Config().Database)
			return err == nil && terminated.RowsAffected() > 0
		}, 5*time.Second, time.Millisecond)

		expectProblem(t, <-cut, 503)
		_, err = isolated.Exec(t.Context(), "ROLLBACK")
		require.NoError(t, err)
		require.Equal(t, 201, service.post(t, "/patients/1/interactions", interactionBody()).status)
	})

	t.Run("a database that is read-only is a 503", func(t *testing.T) {
		t.Parallel()
		service, isolated := newIsolatedService(t)
		database := isolated.Config().Database
		_, err := isolated.Exec(t.Context(), "ALTER DATABASE "+database+" SET default_transaction_read_only = on")
		require.NoError(t, err)
		// The pool connects only now, so the setting applies.
		expectProblem(t, service.post(t, "/patients/1/interactions", interactionBody()), 503)
	})

	t.Run("a database without the tables is not ready", func(t *testing.T) {
		t.Parallel()
		emptyURL, err := createDatabase("template1", strings.ToLower(rand.Text()))
		require.NoError(t, err)
		service := newService(t, openStore(t, withRole(emptyURL)))
		expectProblem(t, service.get(t, "/readyz"), 503)
	})
}

// The program as a process

func TestStart(t *testing.T) {
	t.Parallel()

	t.Run("without a database says what to set", func(t *testing.T) {
		code, output := runProgram(t, nil)
		require.Equal(t, 1, code)
		require.Equal(t, "set DATABASE_URL to a PostgreSQL database, "+
			"or try the service with sample data: -demo\n", output)
	})

	t.Run("with -help prints the usage", func(t *testing.T) {
		code, output := runProgram(t, []string{"-help"}, "DATABASE_URL="+serviceURL)
		require.Equal(t, 0, code)
		require.Contains(t, output, "Usage: patient-interactions")
	})

	t.Run("with an unknown flag prints the usage", func(t *testing.T) {
		code, output := runProgram(t, []string{"-dmeo"}, "DATABASE_URL="+serviceURL)
		require.Equal(t, 2, code)
		require.Contains(t, output, "Usage: patient-interactions")
	})

	t.Run("with an argument that is no flag refers to -help", func(t *testing.T) {
		code, output := runProgram(t, []string{"demo"}, "DATABASE_URL="+serviceURL)
		require.Equal(t, 1, code)
		require.Equal(t, "unexpected argument \"demo\": see -help\n", output)
	})

	t.Run("with a malformed DATABASE_URL names it", func(t *testing.T) {
		code, output := runProgram(t, nil, "DATABASE_URL=postgres://%zz")
		require.Equal(t, 1, code)
		require.Regexp(t, `^read DATABASE_URL: .*\n$`, output)
	})

	t.Run("on a port that is taken says what to set", func(t *testing.T) {
		addr := listen(t).Addr().String()
		code, output := runProgram(t, nil, "DATABASE_URL="+serviceURL, "ADDR="+addr)
		require.Equal(t, 1, code)
		require.Equal(t, "listen tcp "+addr+": bind: address already in use: "+
			"set ADDR to another address, such as 127.0.0.1:8081\n", output)
	})

	t.Run("succeeds while the database is away", func(t *testing.T) {
		p := startProgram(t, nil, "DATABASE_URL=postgres://127.0.0.1:1/x?sslmode=disable")
		require.Equal(t, 200, p.get(t, "/livez").status)
	})
}

func TestReadyFlag(t *testing.T) {
	t.Parallel()
	portOf := func(p *program) string { return strings.TrimPrefix(p.url, "http://127.0.0.1") } // such as :8080

	t.Run("succeeds beside a service that is ready, whatever proxy is set", func(t *testing.T) {
		p := startProgram(t, nil, "DATABASE_URL="+serviceURL)
		code, output := runProgram(t, []string{"-ready"}, "ADDR="+portOf(p), "HTTP_PROXY=http://127.0.0.1:9")
		require.Equal(t, 0, code)
		require.Empty(t, output)
	})

	t.Run("fails beside a service without a database", func(t *testing.T) {
		p := startProgram(t, nil, "DATABASE_URL=postgres://127.0.0.1:1/x?sslmode=disable")
		code, output := runProgram(t, []string{"-ready"}, "ADDR="+portOf(p))
		require.Equal(t, 1, code)
		require.Equal(t, "not ready: the service answered 503 Service Unavailable\n", output)
	})

	t.Run("fails without a service", func(t *testing.T) {
		code, output := runProgram(t, []string{"-ready"}, "ADDR=127.0.0.1:1")
		require.Equal(t, 1, code)
		require.Regexp(t, `^not ready: .*connection refused\n$`, output)
	})
}

func TestStop(t *testing.T) {
	t.Parallel()

	t.Run("answers the requests in flight first", func(t *testing.T) {
		t.Parallel()
		patient := newPatient(t)
		p := startProgram(t, nil, "DATABASE_URL="+serviceURL)
		upload := startUpload(t, p.url+patient.interactionsPath())

		require.NoError(t, p.Process.Signal(syscall.SIGTERM))
		require.Eventually(t, func() bool {
			_, err := p.send("GET", "/livez", "", nil)
			return err != nil
		}, 5*time.Second, time.Millisecond, "it should accept no new connection")
		upload.finish()

		require.Equal(t, 201, <-upload.status)
		require.NoError(t, p.Wait(), "it should exit with 0")
		require.Len(t, patient.history(""), 1)
	})

	t.Run("closes connections that stay busy for 8 seconds", func(t *testing.T) {
		t.Parallel()
		p := startProgram(t, nil, "DATABASE_URL="+serviceURL)
		upload := startUpload(t, p.url+"/patients/1/interactions")
		start := time.Now()

		require.NoError(t, p.Process.Signal(os.Interrupt))

		require.NoError(t, p.Wait(), "it should exit with 0")
		require.WithinRange(t, time.Now(), start.Add(8*time.Second), start.Add(10*time.Second))
		require.Contains(t, p.readLog(), "closing the connections that are still busy")
		upload.finish()
		require.Zero(t, <-upload.status, "the client should get no answer")
	})
}

func TestSlowClient(t *testing.T) {
	t.Parallel()
	p := startProgram(t, nil, "DATABASE_URL="+serviceURL)
	exchange := func(t *testing.T, request string) string {
		connection, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		require.NoError(t, err)
		defer connection.Close()
		_, err = io.WriteString(connection, request)
		require.NoError(t, err)
		require.NoError(t, connection.SetReadDeadline(time.Now().Add(10*time.Second)))
		answer, err := io.ReadAll(connection)
		require.NoError(t, err, "the service should close the connection")
		return string(answer)
	}

	t.Run("who needs longer for the body than the service may take to answer is served", func(t *testing.T) {
		t.Parallel()
		upload := startUpload(t, api.url+newPatient(t).interactionsPath())

		time.Sleep(4200 * time.Millisecond)
		upload.finish()

		require.Equal(t, 201, <-upload.status)
	})

	t.Run("who does not finish the header is disconnected", func(t *testing.T) {
		require.Empty(t, exchange(t, "GET /livez HTTP/1.1\r\nHost: x\r\n"))
	})

	t.Run("who sends too large a header is refused", func(t *testing.T) {
		header := "X: " + strings.Repeat("x", 32<<10)
		require.Contains(t, exchange(t, "GET /livez HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n"), " 431 ")
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

		require.Len(t, parseJSON[Page[Patient]](t, p.get(t, "/patients").body).Items, 12)
		connection := p.connectToDemo(t)
		require.Eventually(t, func() bool { // once the owner, who loaded the data, is gone
			const query = `SELECT string_agg(DISTINCT usename, ',') = 'patient_interactions' FROM pg_stat_activity
				WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`
			var onlyTheRole bool
			err := connection.QueryRow(t.Context(), query).Scan(&onlyTheRole)
			return err == nil && onlyTheRole
		}, 5*time.Second, 5*time.Millisecond)
	})

	for name, signal := range map[string]os.Signal{
		"leaves no server and no directory after Ctrl-C":                  os.Interrupt,
		"leaves no server and no directory after SIGTERM":                 syscall.SIGTERM,
		"leaves no server and no directory after its terminal was closed": syscall.SIGHUP,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, []string{"-demo"})
			connection := p.connectToDemo(t)

			require.NoError(t, p.Process.Signal(signal))

			require.NoError(t, p.Wait(), "it should exit with 0")
			require.NoDirExists(t, p.demoDir(t))
			require.Error(t, connection.Ping(t.Context()), "the server should be gone")
		})
	}

	t.Run("leaves no server and no directory if the reader of its log ends first", func(t *testing.T) {
		t.Parallel()
		p := newProgram(t, []string{"-demo"})
		reader, writer, err := os.Pipe()
		require.NoError(t, err)
		p.Stderr = writer
		require.NoError(t, p.Start())
		line, err := bufio.NewReader(reader).ReadString('\n')
		require.NoError(t, err)
		require.NoError(t, reader.Close())
		require.NoError(t, writer.Close())

		require.NoError(t, p.Process.Signal(os.Interrupt))

		require.NoError(t, p.Wait(), "it should exit with 0")
		require.NoDirExists(t, demoDirPattern.FindStringSubmatch(line)[1])
	})
}

// A model

// model is what the service must answer, kept in memory: interactions in the order of recording.
type model struct {
	t            *testing.T
	tag          string // in the names of the patients
	patients     []testPatient
	doctors      map[int64]string // names by id
	interactions []Interaction
}

func TestModel(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if fixed := os.Getenv("MODEL_SEED"); fixed != "" {
		_, err := fmt.Sscan(fixed, &seed)
		require.NoError(t, err)
	}
	t.Logf("repeat this test with MODEL_SEED=%d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))

	m := model{t: t, tag: rand.Text(), doctors: map[int64]string{}}
	for _, doctor := range getJSON[Page[Doctor]](t, "/doctors?limit=100").Items {
		m.doctors[doctor.ID] = doctor.Name
	}
	m.patients = []testPatient{newPatientNamed(t, "Anna "+m.tag), newPatientNamed(t, "Bert "+m.tag)}
	for range 400 {
		m.step(random, m.patients[random.IntN(len(m.patients))])
	}
}

// step sends a random request about a patient and compares the answer.
func (m *model) step(random *mathrand.Rand, patient testPatient) {
	outcomes := []string{healthy, unhealthy, enteredInError}
	doctor := random.Int64N(3) + 1
	interaction := Interaction{
		PatientID:  patient.id,
		Doctor:     DoctorReference{doctor, m.doctors[doctor]},
		OccurredAt: january(random.IntN(12) + 1),
		Outcome:    outcomes[random.IntN(2)],
		Notes:      rand.Text(),
	}
	all := m.history(patient, func(Interaction) bool { return true })
	if len(all) == 0 {
		m.record(patient, interaction)
		return
	}

	earlier := all[random.IntN(len(all))]
	switch random.IntN(6) {
	case 0:
		m.record(patient, interaction)
	case 1:
		interaction.Outcome = outcomes[random.IntN(3)]
		m.amend(patient, earlier, interaction)
	case 2:
		require.Equal(m.t, earlier, getJSON[Interaction](m.t, patient.interactionPath(earlier.ID)))
		require.Equal(m.t, earlier, m.send(patient, earlier), "a retry")
	case 3:
		require.Equal(m.t, m.timeline(patient), getJSON[Timeline](m.t, patient.path()+"/timeline"))
	case 4:
		m.comparePatients(doctor, outcomes[random.IntN(2)])
	case 5:
		from, to := january(random.IntN(6)+1), january(random.IntN(12)+1)
		m.compareHistory(patient, random.IntN(2) == 0, from, to, doctor, outcomes[random.IntN(3)])
	}
}

// amend sends an amendment, which is refused if the interaction is amended already.
func (m *model) amend(patient testPatient, amended, amendment Interaction) {
	m.t.Helper()
	if amended.AmendedBy != nil {
		response := api.post(m.t, patient.amendmentsPath(amended.ID), interactionBody())
		require.Contains(m.t, expectProblem(m.t, response, 409).Detail, fmt.Sprint(*amended.AmendedBy))
		return
	}
	amendment.Amends = &amended.ID
	m.record(patient, amendment)
}

func isCurrent(i Interaction) bool {
	return i.AmendedBy == nil && i.Outcome != enteredInError
}

// history returns the patient's interactions that match, latest first.
func (m *model) history(patient testPatient, match func(Interaction) bool) []Interaction {
	matching := []Interaction{}
	for _, i := range m.interactions {
		if i.PatientID == patient.id && match(i) {
			matching = append(matching, i)
		}
	}
	slices.SortFunc(matching, func(a, b Interaction) int {
		if c := b.OccurredAt.Compare(a.OccurredAt); c != 0 {
			return c
		}
		return cmp.Compare(b.ID, a.ID)
	})
	return matching
}

func (m *model) timeline(patient testPatient) Timeline {
	timeline := Timeline{HealthStatus: unknown, Items: []Period{}}
	for _, i := range slices.Backward(m.history(patient, isCurrent)) {
		last := len(timeline.Items) - 1
		if timeline.HealthStatus == i.Outcome {
			timeline.Items[last].Interactions++
			continue
		}
		if last >= 0 {
			timeline.Items[last].To = &i.OccurredAt
		}
		timeline.HealthStatus = i.Outcome
		timeline.Items = append(timeline.Items, Period{Outcome: i.Outcome, From: i.OccurredAt, Interactions: 1})
	}
	return timeline
}

// send asks the service for an interaction. The notes are the key, so sending it again is a retry.
func (m *model) send(patient testPatient, i Interaction) Interaction {
	m.t.Helper()
	path := patient.interactionsPath()
	if i.Amends != nil {
		path = patient.amendmentsPath(*i.Amends)
	}
	body := interactionBody(fields{
		"doctor_id": i.Doctor.ID, "outcome": i.Outcome, "notes": i.Notes, "occurred_at": i.OccurredAt,
	})
	return expectCreated(m.t, api.postWith(m.t, withKey(i.Notes), path, body))
}

func (m *model) record(patient testPatient, i Interaction) {
	m.t.Helper()
	recorded := m.send(patient, i)
	i.ID, i.RecordedAt = recorded.ID, recorded.RecordedAt
	require.Equal(m.t, i, recorded)
	for n := range m.interactions {
		require.Greater(m.t, i.ID, m.interactions[n].ID)
		if i.Amends != nil && m.interactions[n].ID == *i.Amends {
			m.interactions[n].AmendedBy = &i.ID
		}
	}
	m.interactions = append(m.interactions, i)
}

func (m *model) comparePatients(doctor int64, status string) {
	m.t.Helper()
	expected := []int64{}
	for _, patient := range m.patients {
		byDoctor := m.history(patient, func(i Interaction) bool { return isCurrent(i) && i.Doctor.ID == doctor })
		if len(byDoctor) > 0 && m.timeline(patient).HealthStatus == status {
			expected = append(expected, patient.id)
		}
	}
	list := fmt.Sprintf("/patients?limit=1&search=%s&doctor_id=%d&health_status=%s", m.tag, doctor, status)
	require.Equal(m.t, expected, patientIDs(allPages[Patient](m.t, list)))
}

func (m *model) compareHistory(
	patient testPatient, includeAmended bool, from, to time.Time, doctor int64, outcome string,
) {
	m.t.Helper()
	inPeriod := func(i Interaction) bool {
		return (includeAmended || isCurrent(i)) && !i.OccurredAt.Before(from) && i.OccurredAt.Before(to)
	}
	matches := func(i Interaction) bool { return inPeriod(i) && i.Outcome == outcome && i.Doctor.ID == doctor }

	list := fmt.Sprintf("%s?limit=2&include_amended=%t&from=%s&to=%s", patient.interactionsPath(), includeAmended,
		from.Format(time.RFC3339), to.Format(time.RFC3339))
	require.Equal(m.t, m.history(patient, inPeriod), allPages[Interaction](m.t, list))
	list += fmt.Sprintf("&outcome=%s&doctor_id=%d", outcome, doctor)
	require.Equal(m.t, m.history(patient, matches), allPages[Interaction](m.t, list))
}

// Fuzzing: whatever a client sends is answered or refused, and never a defect

func FuzzBody(f *testing.F) {
	for _, body := range []string{
		interactionBody(), "{", `{"notes": "\ud800"}`, "[[[", "\xff", `{"doctor_id": 1e400}`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		expectNoDefect(t, "POST", "/patients/1/interactions", body, nil)
	})
}

func FuzzQuery(f *testing.F) {
	for _, query := range []string{
		"limit=1&cursor=9", "to=9999-12-31T23:59:59%2B24:00", "outcome=%00", "%", "a;b", "&&=",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		raw := strings.NewReplacer("#", "", " ", "+").Replace(query)
		expectNoDefect(t, "GET", "/patients/1/interactions?"+raw, "", nil)
		expectNoDefect(t, "GET", "/patients?search="+url.QueryEscape(query), "", nil)
	})
}

func FuzzHeader(f *testing.F) {
	for _, value := range []string{"k", "", "\xff", `application/json; a="`, "null", "http://[::1]:port"} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		header := http.Header{
			"Idempotency-Key": {value}, "Content-Type": {value}, "Origin": {value}, "Sec-Fetch-Site": {value},
		}
		expectNoDefect(t, "POST", "/patients/1/interactions", "{}", header)
	})
}

// Benchmarks

// BenchmarkOperations measures each operation over HTTP, and beside it the call of the store that it makes. Their
// ratio says what HTTP, validation and JSON cost, whatever the speed of the machine. The database has 100,000
// patients with 10 interactions each, and one of them 20,000.
func BenchmarkOperations(b *testing.B) {
	service, isolated := newIsolatedService(b)
	fillForBenchmarks(b, isolated)
	var deep string
	err := isolated.QueryRow(b.Context(), `SELECT id::text FROM interactions WHERE patient_id = 1000
		ORDER BY occurred_at DESC, id DESC OFFSET 10000 LIMIT 1`).Scan(&deep)
	require.NoError(b, err)

	store := openStore(b, withRole(isolated.Config().ConnString()))
	paging := Paging{Limit: 50}
	history := func(cursor string) func() error {
		filter := InteractionFilter{PatientPath: PatientPath{1000}, Paging: Paging{50, cursor}}
		return func() error { _, err := store.ListInteractions(b.Context(), filter); return err }
	}
	patients := func(filter PatientFilter) func() error {
		return func() error { _, err := store.ListPatients(b.Context(), filter); return err }
	}
	anyone := func() int64 { return 13 + mathrand.Int64N(100_000) }
	document := func() error {
		in := NewInteraction{PatientPath: PatientPath{anyone()}, DoctorID: 1, Outcome: healthy, Notes: "Well."}
		_, err := store.DocumentInteraction(b.Context(), in)
		return err
	}
	timeline := func() error { _, err := store.GetTimeline(b.Context(), PatientPath{anyone()}); return err }

	path := func(path string) func() string { return func() string { return path } }
	pathOf := func(list string) func() string {
		return func() string { return fmt.Sprintf("/patients/%d/%s", anyone(), list) }
	}
	for _, operation := range []struct {
		name string
		path func() string
		body string
		call func() error
	}{
		{"document", pathOf("interactions"), interactionBody(), document},
		{"history", path("/patients/1000/interactions"), "", history("")},
		{"history at depth 10,000", path("/patients/1000/interactions?cursor=" + deep), "", history(deep)},
		{"timeline", pathOf("timeline"), "", timeline},
		{"patients", path("/patients"), "", patients(PatientFilter{Paging: paging})},
		{"search", path("/patients?search=abc"), "", patients(PatientFilter{Search: "abc", Paging: paging})},
	} {
		b.Run(operation.name+"/http", func(b *testing.B) {
			method := "GET"
			if operation.body != "" {
				method = "POST"
			}
			for b.Loop() {
				response := service.request(b, method, operation.path(), operation.body, nil)
				require.Less(b, response.status, 300, response.body)
			}
		})
		b.Run(operation.name+"/store", func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, operation.call())
			}
		})
	}
}

// fillForBenchmarks adds 100,000 patients with 10 interactions each, and 20,000 of patient 1000.
func fillForBenchmarks(b *testing.B, isolated *pgx.Conn) {
	b.Helper()
	for _, statement := range []string{
		"ALTER TABLE interactions DISABLE TRIGGER ALL",
		`INSERT INTO patients (name, birth_date)
			SELECT initcap(md5(n::text)), '1980-01-01' FROM generate_series(1, 100000) n`,
		`INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes)
			SELECT p, 1 + n % 5, '2005-01-01'::timestamptz + n * interval '1 hour', 'healthy',
			       repeat('As seen last time. ', 15)
			FROM generate_series(13, 100012) p, generate_series(1, CASE WHEN p = 1000 THEN 20000 ELSE 10 END) n`,
		`UPDATE patients p SET health_status = 'healthy', last_interaction_at = '2006-01-01' WHERE id > 12`,
		"ALTER TABLE interactions ENABLE TRIGGER ALL",
		"ALTER TABLE interactions ENABLE ALWAYS TRIGGER interactions_append_only",
		"ALTER TABLE interactions ENABLE ALWAYS TRIGGER interactions_apply_to_patient",
		"VACUUM ANALYZE",
	} {
		_, err := isolated.Exec(b.Context(), statement)
		require.NoError(b, err)
	}
}

// Helpers

const (
	healthy        = "healthy"
	unhealthy      = "unhealthy"
	unknown        = "unknown"
	enteredInError = "entered_in_error"
)

var (
	serverURL  string        // the PostgreSQL server, as its superuser
	serviceURL string        // the database that most tests share, as the service's role
	owner      *pgxpool.Pool // the same database, as its owner
	api        *testService  // the service on it
)

// databasePrefix is how the names of this run's databases start.
var databasePrefix = "test_" + strings.ToLower(rand.Text()) + "_"

// TestMain runs the tests, or the program itself if a test has started it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_PROGRAM") != "" {
		main()
		os.Exit(0)
	}
	flag.Set("test.parallel", "8") // most tests wait: for PostgreSQL, a process or a time limit
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare the tests:", err)
	}
	os.Exit(code)
}

// runTests prepares what the tests share, runs them, and cleans up. It returns the exit code of the program.
func runTests(m *testing.M) (code int, err error) {
	time.Local = time.FixedZone("UTC+13", 13*60*60) // no response may depend on it
	serverURL = os.Getenv("DATABASE_URL")
	if serverURL == "" {
		postgres, err := startPostgres()
		if err != nil {
			return 1, fmt.Errorf("start a throwaway PostgreSQL: %w", err)
		}
		defer postgres.stop()
		serverURL = postgres.databaseURL("postgres")
	}
	defer dropDatabases()
	ownerURL, err := createSharedDatabase()
	if err != nil {
		return 1, err
	}
	if owner, err = pgxpool.New(context.Background(), ownerURL); err != nil {
		return 1, err
	}
	defer owner.Close()

	serviceURL = withRole(ownerURL)
	store, err := OpenStore(context.Background(), serviceURL)
	if err != nil {
		return 1, err
	}
	defer store.Close()
	api = startService(store)
	defer api.stop()
	return m.Run(), nil
}

// createSharedDatabase creates the database that most tests share, and the template that it is copied from. Its time
// zone and date style are unusual, because no response may depend on them.
func createSharedDatabase() (ownerURL string, err error) {
	template, err := createDatabase("template1", "template")
	if err != nil {
		return "", err
	}
	if err := loadSchemaAndSeed(template); err != nil {
		return "", err
	}
	ownerURL, err = createDatabase(databasePrefix+"template", "shared")
	if err != nil {
		return "", err
	}
	shared := "ALTER DATABASE " + databasePrefix + "shared SET "
	return ownerURL, executeOnServer(shared+"timezone = 'Pacific/Auckland'", shared+"datestyle = 'German'")
}

// createDatabase creates a database as a copy of another one, and returns its address for the owner.
func createDatabase(template, name string) (ownerURL string, err error) {
	name = databasePrefix + name
	return withDatabase(serverURL, name), executeOnServer("CREATE DATABASE " + name + " TEMPLATE " + template)
}

func executeOnServer(statements ...string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, serverURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

func dropDatabases() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, serverURL)
	if err != nil {
		return
	}
	defer conn.Close(ctx)
	rows, _ := conn.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", databasePrefix)
	names, _ := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
	}
}

func withDatabase(databaseURL, name string) string {
	address, err := url.Parse(databaseURL)
	if err != nil {
		panic(err)
	}
	address.Path = "/" + name
	return address.String()
}

// withRole returns the address of a database with which its owner takes on the service's role.
func withRole(ownerURL string) string {
	address, err := url.Parse(ownerURL)
	if err != nil {
		panic(err)
	}
	query := address.Query()
	query.Set("role", "patient_interactions")
	query.Set("pool_max_conns", "16")
	address.RawQuery = query.Encode()
	return address.String()
}

func openStore(t testing.TB, databaseURL string) *Store {
	t.Helper()
	store, err := OpenStore(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(store.Close)
	return store
}

// testService is the real handler, reached over HTTP.
type testService struct {
	url  string
	log  *logBuffer
	stop func()
}

func startService(store *Store) *testService {
	log := &logBuffer{}
	server := httptest.NewServer(newHandler(store, slog.New(slog.NewTextHandler(log, nil))))
	return &testService{url: server.URL, log: log, stop: server.Close}
}

// newService starts a service on a database of any kind.
func newService(t testing.TB, store *Store) *testService {
	t.Helper()
	s := startService(store)
	t.Cleanup(s.stop)
	return s
}

// newIsolatedService starts a service on a database of its own, and connects to that as its owner.
func newIsolatedService(t testing.TB) (*testService, *pgx.Conn) {
	t.Helper()
	ownerURL, err := createDatabase(databasePrefix+"template", strings.ToLower(rand.Text()))
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), ownerURL)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return newService(t, openStore(t, withRole(ownerURL))), conn
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}

// httpResponse is a response that has been read.
type httpResponse struct {
	status int
	header http.Header
	body   string
}

// httpClient returns redirects instead of following them.
var httpClient = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 100},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// send sends a request. A POST has the Content-Type application/json unless header has another one.
func (s *testService) send(method, path, body string, header http.Header) (httpResponse, error) {
	request, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return httpResponse{}, err
	}
	if method == "POST" {
		request.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(request.Header, header)

	received, err := httpClient.Do(request)
	if err != nil {
		return httpResponse{}, err
	}
	defer received.Body.Close()
	content, err := io.ReadAll(received.Body)
	return httpResponse{status: received.StatusCode, header: received.Header, body: string(content)}, err
}

func (s *testService) request(t testing.TB, method, path, body string, header http.Header) httpResponse {
	t.Helper()
	response, err := s.send(method, path, body, header)
	require.NoError(t, err)
	return response
}

func (s *testService) get(t testing.TB, path string) httpResponse {
	t.Helper()
	return s.request(t, "GET", path, "", nil)
}

func (s *testService) post(t testing.TB, path, body string) httpResponse {
	t.Helper()
	return s.request(t, "POST", path, body, nil)
}

func (s *testService) postWith(t testing.TB, header http.Header, path, body string) httpResponse {
	t.Helper()
	return s.request(t, "POST", path, body, header)
}

// withKey returns a header with an idempotency key.
func withKey(key string) http.Header {
	return http.Header{"Idempotency-Key": {key}}
}

// concurrently calls send n times at once, with 0 to n-1, and returns the responses.
func concurrently(t testing.TB, n int, send func(i int) (httpResponse, error)) []httpResponse {
	t.Helper()
	responses, errs := make([]httpResponse, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { responses[i], errs[i] = send(i) })
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	return responses
}

// parseJSON parses JSON that may have no other fields than T.
func parseJSON[T any](t testing.TB, body string) (value T) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(body))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&value), body)
	return value
}

// expectCreated expects that a POST has created an interaction, or had created it before, and returns that.
func expectCreated(t testing.TB, response httpResponse) Interaction {
	t.Helper()
	require.Equal(t, 201, response.status, response.body)
	interaction := parseJSON[Interaction](t, response.body)
	location := fmt.Sprintf("/patients/%d/interactions/%d", interaction.PatientID, interaction.ID)
	require.Equal(t, location, response.header.Get("Location"))
	return interaction
}

// getJSON returns what the shared service answers.
func getJSON[T any](t testing.TB, path string) T {
	t.Helper()
	response := api.get(t, path)
	require.Equal(t, 200, response.status, response.body)
	require.Equal(t, "application/json", response.header.Get("Content-Type"))
	return parseJSON[T](t, response.body)
}

// allPages returns the items of all pages of a list, whose path has a query.
func allPages[T any](t testing.TB, path string) []T {
	t.Helper()
	return pagesAfter[T](t, path, "")
}

func pagesAfter[T any](t testing.TB, path, cursor string) []T {
	t.Helper()
	items := []T{}
	for {
		page := getJSON[Page[T]](t, path+"&cursor="+cursor)
		items = append(items, page.Items...)
		if page.NextCursor == nil {
			return items
		}
		cursor = *page.NextCursor
		require.Less(t, len(items), 10_000, "the list should end")
	}
}

// leak matches what no client may see: SQL, types and packages of Go, names in the database, paths of files.
var leak = regexp.MustCompile(`(?i)sqlstate|select |insert |relation "|constraint|violates|pgx|` +
	`\bu?int64|float64|\bstruct\b|main\.|json:|strconv|runtime|goroutine|dial |tcp|` +
	`\.go:|\.sql|/tmp|/usr|/var|/home|/root`)

// expectProblem expects a problem with the status, of the form that all problems have.
func expectProblem(t testing.TB, response httpResponse, status int) Problem {
	t.Helper()
	require.Equal(t, status, response.status, response.body)
	require.Equal(t, "application/problem+json", response.header.Get("Content-Type"))
	require.Equal(t, "no-store", response.header.Get("Cache-Control"))
	require.NotEmpty(t, response.header.Get("X-Request-Id"))
	require.Equal(t, status == 503, response.header.Get("Retry-After") != "")
	problem := parseJSON[Problem](t, response.body)
	require.Equal(t, "about:blank", problem.Type)
	require.Equal(t, http.StatusText(status), problem.Title)
	require.Equal(t, status, problem.Status)
	require.NotEmpty(t, problem.Detail)
	require.NotRegexp(t, leak, response.body)
	return problem
}

// expectFaults expects a problem that names these faulty fields, in this order.
func expectFaults(t testing.TB, response httpResponse, faultyFields ...string) Problem {
	t.Helper()
	problem := expectProblem(t, response, 422)
	names := []string{}
	for _, fault := range problem.Errors {
		names = append(names, fault.Field)
		require.NotEmpty(t, fault.Detail)
	}
	require.Equal(t, faultyFields, names)
	return problem
}

// expectNoDefect expects that a request, if net/http can send and read it, is answered without a defect.
func expectNoDefect(t *testing.T, method, path, body string, header http.Header) {
	t.Helper()
	response, err := api.send(method, path, body, header)
	if err != nil {
		return // net/http cannot send it
	}
	if response.header.Get("X-Request-Id") == "" {
		require.Contains(t, []int{400, 431}, response.status, "net/http itself may refuse it, and nothing else")
		return
	}
	require.Less(t, response.status, 500, response.body)
	if response.status >= 400 {
		expectProblem(t, response, response.status)
	}
}

// fields are fields of a JSON object.
type fields map[string]any

// interactionBody returns a valid body for both POST operations, with some fields replaced.
func interactionBody(replaced ...fields) string {
	body := fields{"doctor_id": 1, "outcome": healthy, "notes": "No complaints."}
	for _, f := range replaced {
		maps.Copy(body, f)
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

// january returns 9 o'clock UTC of a day in January 2024.
func january(day int) time.Time {
	return time.Date(2024, time.January, day, 9, 0, 0, 0, time.UTC)
}

// testPatient is a patient of the shared database, born on 1980-01-31.
type testPatient struct {
	t  testing.TB
	id int64
}

func newPatient(t testing.TB) testPatient {
	t.Helper()
	return newPatientNamed(t, t.Name())
}

func newPatientNamed(t testing.TB, name string) testPatient {
	t.Helper()
	p := testPatient{t: t}
	const insert = "INSERT INTO patients (name, birth_date) VALUES ($1, '1980-01-31') RETURNING id"
	require.NoError(t, owner.QueryRow(t.Context(), insert, name).Scan(&p.id))
	return p
}

func insertDoctor(t testing.TB, name, specialty string) (id int64) {
	t.Helper()
	const insert = "INSERT INTO doctors (name, specialty) VALUES ($1, $2) RETURNING id"
	require.NoError(t, owner.QueryRow(t.Context(), insert, name, specialty).Scan(&id))
	return id
}

// execute executes a statement as the owner of the shared database.
func execute(t testing.TB, statement string, args ...any) {
	t.Helper()
	_, err := owner.Exec(t.Context(), statement, args...)
	require.NoError(t, err)
}

func (p testPatient) path() string {
	return fmt.Sprintf("/patients/%d", p.id)
}

func (p testPatient) interactionsPath() string {
	return p.path() + "/interactions"
}

func (p testPatient) interactionPath(id int64) string {
	return fmt.Sprintf("%s/%d", p.interactionsPath(), id)
}

func (p testPatient) amendmentsPath(id int64) string {
	return p.interactionPath(id) + "/amendments"
}

// post documents an interaction with some fields replaced.
func (p testPatient) post(replaced ...fields) Interaction {
	p.t.Helper()
	return expectCreated(p.t, api.post(p.t, p.interactionsPath(), interactionBody(replaced...)))
}

func (p testPatient) document(outcome string, occurredAt time.Time, replaced ...fields) Interaction {
	p.t.Helper()
	return p.post(append([]fields{{"outcome": outcome, "occurred_at": occurredAt}}, replaced...)...)
}

func (p testPatient) amend(amended Interaction, outcome string, replaced ...fields) Interaction {
	p.t.Helper()
	body := interactionBody(append([]fields{{"outcome": outcome}}, replaced...)...)
	return expectCreated(p.t, api.post(p.t, p.amendmentsPath(amended.ID), body))
}

// history returns the ids of the first page of the patient's history.
func (p testPatient) history(query string) []int64 {
	p.t.Helper()
	return interactionIDs(getJSON[Page[Interaction]](p.t, p.interactionsPath()+"?"+query).Items)
}

func (p testPatient) correctBirthDate(date string) {
	p.t.Helper()
	execute(p.t, "UPDATE patients SET birth_date = $2::text::date WHERE id = $1", p.id, date)
}

// lock locks the patient's row, as a writer who is stuck does.
func (p testPatient) lock() (unlock func()) {
	p.t.Helper()
	tx, err := owner.Begin(p.t.Context())
	require.NoError(p.t, err)
	_, err = tx.Exec(p.t.Context(), "SELECT FROM patients WHERE id = $1 FOR UPDATE", p.id)
	require.NoError(p.t, err)
	return func() { tx.Rollback(context.Background()) }
}

func interactionIDs(interactions []Interaction) []int64 {
	ids := []int64{}
	for _, i := range interactions {
		ids = append(ids, i.ID)
	}
	return ids
}

func patientIDs(patients []Patient) []int64 {
	ids := []int64{}
	for _, p := range patients {
		ids = append(ids, p.ID)
	}
	return ids
}

// namesWithout returns the names without the tag that keeps a test's patients apart from others.
func namesWithout(tag string, patients []Patient) []string {
	names := []string{}
	for _, p := range patients {
		names = append(names, strings.TrimSuffix(p.Name, " "+tag))
	}
	return names
}

// columns are columns of a row, with their values as SQL.
type columns map[string]string

func (c columns) insertInto(table string) string {
	var names, values []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		names = append(names, name)
		values = append(values, c[name])
	}
	return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)",
		table, strings.Join(names, ", "), strings.Join(values, ", "))
}

// beginLikeReplication begins a transaction as logical replication does: only triggers that are ALWAYS enabled fire.
// In REPEATABLE READ it has its snapshot already.
func beginLikeReplication(t testing.TB, level pgx.TxIsoLevel) pgx.Tx {
	t.Helper()
	tx, err := owner.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
	require.NoError(t, err)
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	_, err = tx.Exec(t.Context(), "SET LOCAL session_replication_role = replica; SELECT FROM patients LIMIT 1")
	require.NoError(t, err)
	return tx
}

// makeDoctorsSlow makes a query of doctors take a minute.
func makeDoctorsSlow(t testing.TB, isolated *pgx.Conn) {
	t.Helper()
	_, err := isolated.Exec(t.Context(), `ALTER TABLE doctors RENAME TO d;
		CREATE VIEW doctors AS SELECT d.* FROM d, pg_sleep(60);
		GRANT SELECT ON doctors TO patient_interactions`)
	require.NoError(t, err)
}

// waitForLock waits until a session of PostgreSQL waits for a lock.
func waitForLock(t testing.TB, pid uint32) {
	t.Helper()
	eventually(t, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1", pid)
}

// waitForLockIn waits until some session in a database waits for a lock.
func waitForLockIn(t testing.TB, database string) {
	t.Helper()
	eventually(t, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1", database)
}

// eventually waits until a query returns true.
func eventually(t testing.TB, query string, args ...any) {
	t.Helper()
	require.Eventually(t, func() bool {
		var is bool
		err := owner.QueryRow(t.Context(), query, args...).Scan(&is)
		return err == nil && is
	}, 5*time.Second, time.Millisecond)
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	return listener
}

// openAPI is the part of an OpenAPI document that the tests look at.
type openAPI struct {
	OpenAPI    string
	Paths      map[string]map[string]openAPIOperation
	Components struct{ Schemas map[string]openAPISchema }
}

type openAPIOperation struct {
	OperationID string
	Summary     string
	Description string
	Tags        []string
	Parameters  []struct {
		Name        string
		In          string
		Description string
		Example     any
		Schema      struct{ Default any }
	}
	RequestBody struct {
		Required bool
		Content  map[string]openAPIContent
	}
	Responses map[string]struct {
		Description string
		Headers     map[string]any
		Content     map[string]openAPIContent
	}
}

type openAPIContent struct {
	Example map[string]any
	Schema  struct {
		Ref string `json:"$ref"`
	}
}

type openAPISchema struct {
	Required   []string
	Properties map[string]struct {
		Type   any
		Format string
	}
}

// exampleRequest returns what Swagger UI sends if nothing is edited.
func (o openAPIOperation) exampleRequest(t testing.TB, path string) (address, body string) {
	t.Helper()
	query := url.Values{}
	for _, parameter := range o.Parameters {
		switch {
		case parameter.In == "path":
			path = strings.ReplaceAll(path, "{"+parameter.Name+"}", fmt.Sprint(parameter.Example))
		case parameter.Schema.Default != nil:
			query.Set(parameter.Name, fmt.Sprint(parameter.Schema.Default))
		}
	}
	if example := o.RequestBody.Content["application/json"].Example; example != nil {
		encoded, err := json.Marshal(example)
		require.NoError(t, err)
		body = string(encoded)
	}
	return path + "?" + query.Encode(), body
}

// program is the service as a process of its own.
type program struct {
	*exec.Cmd
	testService
	logFile string
}

// newProgram returns the program before its start. Later variables of the environment replace earlier ones.
func newProgram(t testing.TB, args []string, env ...string) *program {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	logFile, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(func() { logFile.Close() })

	p := &program{Cmd: exec.Command(executable, args...), logFile: logFile.Name()}
	p.Stdout, p.Stderr = logFile, logFile
	p.Env = append(os.Environ(), "RUN_PROGRAM=1", "ADDR=127.0.0.1:0", "DATABASE_URL=")
	p.Env = append(p.Env, env...)
	return p
}

// startProgram starts the program and waits until it serves.
func startProgram(t testing.TB, args []string, env ...string) *program {
	t.Helper()
	p := newProgram(t, args, env...)
	require.NoError(t, p.Start())
	t.Cleanup(func() {
		p.Process.Signal(syscall.SIGTERM) // unlike SIGKILL, it ends PostgreSQL too
		p.Wait()
	})
	serving := regexp.MustCompile(`url=(http://[0-9.:]+)/docs/`)
	require.Eventually(t, func() bool { return serving.MatchString(p.readLog()) }, 20*time.Second, 5*time.Millisecond)
	p.url = serving.FindStringSubmatch(p.readLog())[1]
	return p
}

// runProgram runs the program to its end.
func runProgram(t testing.TB, args []string, env ...string) (exitCode int, output string) {
	t.Helper()
	p := newProgram(t, args, env...)
	require.NoError(t, p.Start())
	defer time.AfterFunc(20*time.Second, func() { p.Process.Kill() }).Stop()
	p.Wait()
	return p.ProcessState.ExitCode(), p.readLog()
}

func (p *program) readLog() string {
	text, _ := os.ReadFile(p.logFile)
	return string(text)
}

// demoDirPattern matches what -demo says about its directory.
var demoDirPattern = regexp.MustCompile(`program stops: (\S+)`)

func (p *program) demoDir(t testing.TB) string {
	t.Helper()
	found := demoDirPattern.FindStringSubmatch(p.readLog())
	require.NotNil(t, found)
	return found[1]
}

// connectToDemo connects to the throwaway PostgreSQL as its owner.
func (p *program) connectToDemo(t testing.TB) *pgx.Conn {
	t.Helper()
	postgres := throwawayPostgres{dir: p.demoDir(t)}
	conn, err := pgx.Connect(t.Context(), postgres.databaseURL("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// pendingUpload is a request that the service has begun to read.
type pendingUpload struct {
	finish func()
	status chan int // of the response, or 0 if there is none
}

func startUpload(t testing.TB, address string) *pendingUpload {
	t.Helper()
	body, writer := io.Pipe()
	request, err := http.NewRequest("POST", address, body)
	require.NoError(t, err)
	request.Header = http.Header{"Content-Type": {"application/json"}, "Expect": {"100-continue"}}

	status := make(chan int, 1)
	go func() {
		transport := &http.Transport{ExpectContinueTimeout: time.Minute}
		received, err := transport.RoundTrip(request)
		if err != nil {
			status <- 0
			return
		}
		received.Body.Close()
		status <- received.StatusCode
	}()
	_, err = io.WriteString(writer, interactionBody()) // returns once the service has asked for the body
	require.NoError(t, err)
	return &pendingUpload{finish: func() { writer.Close() }, status: status}
}
