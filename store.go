package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

const maxReads = 4                               // connections, two a core where it was measured: with 8, 16 clients cost 4 % more CPU a page, and waited half as long again at p99
const maxWrites = 16                             // connections; writes wait for the disk, whose flush then serves several: with 8 they cost 3 % more CPU
const connectTimeout = 2 * time.Second           // for each host in the URL; one that is silent must leave time for the next
const statementTimeout = 3500 * time.Millisecond // under requestTimeout, so that PostgreSQL stops first and keeps the connection
const lockTimeout = 500 * time.Millisecond       // for a patient's row; a write takes milliseconds, so longer means stuck

// Store is PostgreSQL as the service uses it. Its methods are safe for concurrent use. Their errors are Problems, of status
// 404 where the patient or interaction is missing and 503 where the database cannot answer now, or defects of ours.
// Writes have a pool of their own, so that those that wait for a locked patient starve no reader.
type Store struct{ reads, writes *pgxpool.Pool }

// OpenStore prepares the pools without connecting, so it succeeds while the database is away.
func OpenStore(ctx context.Context, url string) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read DATABASE_URL: %w", err)
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.ConnConfig.RuntimeParams["timezone"] = "UTC" // for times inside of JSON
	config.ConnConfig.RuntimeParams["statement_timeout"] = fmt.Sprint(statementTimeout.Milliseconds())
	config.ConnConfig.RuntimeParams["lock_timeout"] = fmt.Sprint(lockTimeout.Milliseconds())
	// A host that hangs costs a request its time limit, and no more: pgx would ask it to cancel the statement, which has a time
	// limit of its own, and wait for its good-bye, 15 seconds that keep the place in the pool from the host in its stead.
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if until, _ := ctx.Deadline(); time.Until(until) > connectTimeout {
			return nil, errors.New("only to cancel a statement")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	config.BeforeClose = func(c *pgx.Conn) { c.PgConn().Conn().Close() }
	forWrites := config.Copy()
	config.MaxConns, forWrites.MaxConns = maxReads, maxWrites
	reads, err := pgxpool.NewWithConfig(ctx, config)
	writes, err2 := pgxpool.NewWithConfig(ctx, forWrites)
	return &Store{reads, writes}, errors.Join(err, err2)
}

// Close waits for the statements under way.
func (s *Store) Close() { s.reads.Close(); s.writes.Close() }

// Every statement about one patient compares patient_id, or patients.id, with a parameter, and joins interactions with
// each other on patient_id as well, so that all of it can run on the one shard where the patient lives.

// CheckReadiness tells whether the database answers and holds the tables.
func (s *Store) CheckReadiness(ctx context.Context, _ struct{}) (Probe, error) {
	_, err := collect(ctx, s, s.reads, pgx.RowTo[int64], "SELECT id FROM doctors LIMIT 1")
	return Probe{"ok"}, err
}

const doctorsQuery = `SELECT id, name, specialty FROM doctors WHERE true %s ORDER BY name, id LIMIT $1`

// ListDoctors pages through the doctors by name.
func (s *Store) ListDoctors(ctx context.Context, in Paging) (PageOf[Doctor], error) {
	f := filter{args: []any{in.Limit + 1}}
	f.and(in.after() > 0, "(name, id) > (SELECT name, id FROM doctors WHERE id = $%d)", in.after())
	doctors, err := collect(ctx, s, s.reads, pgx.RowToStructByPos[Doctor], fmt.Sprintf(doctorsQuery, f.where), f.args...)
	return page(doctors, in.Limit, func(d Doctor) int64 { return d.ID }), err
}

// The longest page stands in the text, since PostgreSQL makes a plan for each page anew where it knows no bound of them all.
const patientsQuery = `
SELECT   p.id, p.name, p.birth_date::text, p.health_status, p.last_interaction_at
FROM     (SELECT p.* FROM patients p WHERE true %s ORDER BY p.name, p.id LIMIT 1001) p
ORDER BY p.name, p.id LIMIT $1`

// isCurrent holds for an interaction i of patient $1 that counts: no amendment replaced it, and it strikes out no other.
// The patient's few amendments are read once, and not for each entry.
const isCurrent = `i.outcome <> 'entered_in_error'
    AND i.id NOT IN (SELECT a.amends FROM interactions a WHERE a.patient_id = $1 AND a.amends IS NOT NULL)`

// ListPatients pages through the patients by name.
func (s *Store) ListPatients(ctx context.Context, in PatientFilter) (PageOf[Patient], error) {
	f := filter{args: []any{in.Limit + 1}}
	f.and(in.Search != "", "p.search_name LIKE searchable($%d)", "%"+escapeLike.Replace(in.Search)+"%")
	f.and(in.HealthStatus != "", "p.health_status = $%d", in.HealthStatus)
	f.and(in.DoctorID > 0, `p.id IN (SELECT i.patient_id FROM interactions i WHERE i.doctor_id = $%d AND i.outcome <> 'entered_in_error'
		AND NOT EXISTS (SELECT 1 FROM interactions a WHERE a.patient_id = i.patient_id AND a.amends = i.id))`, in.DoctorID)
	f.and(in.after() > 0, "(p.name, p.id) > (SELECT c.name, c.id FROM patients c WHERE c.id = $%d)", in.after())
	// A search is planned for its text: the plan for any text, once kept, reads all names.
	mode := map[bool]any{false: pgx.QueryExecModeCacheStatement, true: pgx.QueryExecModeCacheDescribe}[in.Search != ""]
	patients, err := collect(ctx, s, s.reads, pgx.RowToStructByPos[Patient], fmt.Sprintf(patientsQuery, f.where), append([]any{mode}, f.args...)...)
	return page(patients, in.Limit, func(p Patient) int64 { return p.ID }), err
}

// GetPatient returns a patient with the present state.
func (s *Store) GetPatient(ctx context.Context, in PatientPath) (Patient, error) {
	return one(ctx, s, s.reads, noPatient(in.PatientID), pgx.RowToStructByPos[Patient], fmt.Sprintf(patientsQuery, "AND p.id = $2"), 1, in.PatientID)
}

// The patient comes first, so that one without such entries is told from none: it is a row of NULLs. The page is cut
// before that join and the one with doctors, which then cost little; they may leave it in any order.
const historyQuery = `
SELECT    h.id, h.patient_id, h.doctor_id, d.name, h.occurred_at, h.recorded_at, h.outcome, h.notes, h.amends, h.amended_by
FROM      patients p
LEFT JOIN (
    SELECT   i.*, %s AS amended_by
    FROM     interactions i
    %s
    WHERE    i.patient_id = $1 %s
) h ON h.patient_id = p.id
LEFT JOIN doctors d ON d.id = h.doctor_id
WHERE     p.id = $1`

// latestFirst cuts a page. It is no part of what reads one entry, or PostgreSQL may look for that in the whole history.
const latestFirst = ` ORDER BY i.occurred_at DESC, i.id DESC LIMIT $2`

// joinAmendment finds the entry a that replaced i, if any.
const joinAmendment = `LEFT JOIN interactions a ON a.patient_id = i.patient_id AND a.amends = i.id`

// ListInteractions pages through a patient's history, newest first.
func (s *Store) ListInteractions(ctx context.Context, in InteractionFilter) (PageOf[Interaction], error) {
	f := filter{args: []any{in.PatientID, in.Limit + 1}}
	f.and(in.Outcome != "", "i.outcome = $%d", in.Outcome)
	f.and(in.DoctorID > 0, "i.doctor_id = $%d", in.DoctorID)
	f.and(in.From != nil, "i.occurred_at >= $%d", (*time.Time)(in.From))
	f.and(in.To != nil, "i.occurred_at < $%d", (*time.Time)(in.To))
	f.and(in.after() > 0, "(i.occurred_at, i.id) < (SELECT c.occurred_at, c.id FROM interactions c WHERE c.patient_id = $1 AND c.id = $%d)", in.after())
	query := fmt.Sprintf(historyQuery, "a.id", joinAmendment, f.where+latestFirst)
	if !in.IncludeAmended { // what is current has no amendment to look for
		query = fmt.Sprintf(historyQuery, "NULL::bigint", "", "AND "+isCurrent+f.where+latestFirst)
	}
	entries, err := collect(ctx, s, s.reads, scanInteraction, query, f.args...)
	if err == nil && len(entries) == 0 {
		err = noPatient(in.PatientID)
	}
	entries = slices.DeleteFunc(entries, func(i Interaction) bool { return i.ID == 0 })
	slices.SortFunc(entries, func(i, j Interaction) int { return cmp.Or(j.OccurredAt.Compare(i.OccurredAt), cmp.Compare(j.ID, i.ID)) })
	return page(entries, in.Limit, func(i Interaction) int64 { return i.ID }), err
}

// GetInteraction returns any entry of a patient, amended or not.
func (s *Store) GetInteraction(ctx context.Context, in InteractionPath) (Interaction, error) {
	i, err := one(ctx, s, s.reads, noPatient(in.PatientID), scanInteraction, fmt.Sprintf(historyQuery, "a.id", joinAmendment, "AND i.id = $2"), in.PatientID, in.InteractionID)
	if err == nil && i.ID == 0 {
		err = noInteraction(in.PatientID, in.InteractionID)
	}
	return i, err
}

// A period begins where the outcome is not that of the entry before. Entries are numbered from the newest back, so that the
// numbers of its first and the next one's tell how many a period holds.
const timelineQuery = `
SELECT    p.health_status, coalesce(t.periods, '[]')
FROM      patients p
LEFT JOIN (
    SELECT   patient_id, json_agg(json_build_object('outcome', outcome, 'from', starts, 'to', ends, 'interactions', interactions) ORDER BY n DESC) AS periods
    FROM     (SELECT patient_id, outcome, n, occurred_at AS starts, lag(occurred_at) OVER w AS ends, n - lag(n, 1, 0::bigint) OVER w AS interactions
              FROM   (SELECT i.patient_id, i.outcome, i.occurred_at, row_number() OVER w AS n, lead(i.outcome) OVER w IS DISTINCT FROM i.outcome AS begins
                      FROM   interactions i
                      WHERE  i.patient_id = $1 AND ` + isCurrent + `
                      WINDOW w AS (ORDER BY i.occurred_at DESC, i.id DESC)) numbered
              WHERE  begins
              WINDOW w AS (ORDER BY n)) period
    GROUP BY patient_id
) t ON t.patient_id = p.id
WHERE     p.id = $1`

// GetTimeline returns a patient's health over time.
func (s *Store) GetTimeline(ctx context.Context, in PatientPath) (Timeline, error) {
	return one(ctx, s, s.reads, noPatient(in.PatientID), pgx.RowToStructByPos[Timeline], timelineQuery, in.PatientID)
}

// The one statement that writes. It inserts nothing where the patient, the doctor or the amended entry is missing, where
// it would lie before the patient's birth, and where the key is used or the entry amended already.
const insertQuery = `
WITH new AS (
    INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, amends, idempotency_key)
    SELECT    p.id, d.id, coalesce($4, amended.occurred_at, $5), $7, $8, amended.id, nullif($6, '')
    FROM      patients p
    JOIN      doctors d ON d.id = $2
    LEFT JOIN interactions amended ON amended.patient_id = p.id AND amended.id = $3
    WHERE     p.id = $1
      AND     amended.id IS NOT DISTINCT FROM $3
      AND     ($7::outcome = 'entered_in_error' OR coalesce($4, amended.occurred_at, $5) >= (p.birth_date::timestamp - interval '14 hours') AT TIME ZONE 'UTC')
    ON CONFLICT DO NOTHING
    RETURNING *
)
SELECT new.id, new.patient_id, d.id, d.name, new.occurred_at, new.recorded_at, new.outcome, new.notes, new.amends, NULL::bigint
FROM   new JOIN doctors d ON d.id = new.doctor_id`

// obstaclesQuery asks for all that insertQuery may have stumbled over, and for the entry that has the key: what it is, and
// whether it came of the same request. Its empty message makes it end, as a write does, only when a synchronous standby has
// all that it saw: PostgreSQL keeps an entry whose wait for the standby was cut short.
const obstaclesQuery = `
SELECT    p.birth_date::text, ($7::outcome = 'entered_in_error' OR coalesce($4, amended.occurred_at, $5) >= (p.birth_date::timestamp - interval '14 hours') AT TIME ZONE 'UTC') AS born,
          d.id IS NOT NULL AS doctor_exists, amended.id IS NOT NULL AS amended_exists, later.id AS amended_by,
          i.doctor_id = $2 AND i.amends IS NOT DISTINCT FROM $3 AND coalesce(i.occurred_at = $4, true) AND i.outcome = $7 AND i.notes = $8 AS same,
          CASE WHEN i.id IS NOT NULL THEN jsonb_build_object(
              'id', i.id, 'patient_id', i.patient_id, 'doctor', jsonb_build_object('id', by.id, 'name', by.name), 'occurred_at', i.occurred_at,
              'recorded_at', i.recorded_at, 'outcome', i.outcome, 'notes', i.notes, 'amends', i.amends, 'amended_by', a.id) END AS made
FROM      patients p
LEFT JOIN doctors d            ON d.id = $2
LEFT JOIN interactions amended ON amended.patient_id = p.id AND amended.id = $3
LEFT JOIN interactions later   ON later.patient_id = p.id AND later.amends = $3
LEFT JOIN interactions i       ON i.patient_id = p.id AND i.idempotency_key = $6
LEFT JOIN interactions a       ON a.patient_id = i.patient_id AND a.amends = i.id
LEFT JOIN doctors by           ON by.id = i.doctor_id
WHERE     p.id = $1 AND pg_logical_emit_message(true, '', '') IS NOT NULL`

type obstacles struct {
	BirthDate                         string
	Born, DoctorExists, AmendedExists bool
	AmendedBy                         *int64
	Same                              *bool
	Made                              *Interaction
}

// DocumentInteraction records an interaction.
func (s *Store) DocumentInteraction(ctx context.Context, in NewInteraction) (Interaction, error) {
	return s.record(ctx, in.PatientID, nil, in.Outcome, in.Entry)
}

// AmendInteraction records an interaction that replaces an earlier one.
func (s *Store) AmendInteraction(ctx context.Context, in NewAmendment) (Interaction, error) {
	return s.record(ctx, in.PatientID, &in.InteractionID, in.Outcome, in.Entry)
}

func (s *Store) record(ctx context.Context, patientID int64, amends *int64, outcome string, e Entry) (none Interaction, err error) {
	args := []any{patientID, e.DoctorID, amends, (*time.Time)(e.OccurredAt), time.Now(), e.IdempotencyKey, outcome, string(e.Notes)}
	made, err := one(ctx, s, s.writes, pgx.ErrNoRows, scanInteraction, insertQuery, args...)
	if !errors.Is(err, pgx.ErrNoRows) {
		return made, err
	}
	o, err := one(ctx, s, s.writes, noPatient(patientID), pgx.RowToStructByPos[obstacles], obstaclesQuery, args...)
	switch {
	case err != nil:
		return none, err
	case o.Made != nil && *o.Same:
		return *o.Made, nil
	case o.Made != nil:
		return none, invalid().add(422, "Idempotency-Key", fmt.Errorf("was used for another request, which made interaction %d: choose a new key", o.Made.ID))
	case amends != nil && !o.AmendedExists:
		return none, noInteraction(patientID, *amends)
	case o.AmendedBy != nil:
		return none, refuse(409, fmt.Sprintf("Interaction %d is already amended by interaction %d: amend that one instead.", *amends, *o.AmendedBy))
	case o.DoctorExists && o.Born:
		return none, refuse(503, "The record changed meanwhile: repeat the request.")
	}
	faults := invalid()
	if !o.DoctorExists {
		faults.add(422, "doctor_id", fmt.Errorf("there is no doctor %d", e.DoctorID))
	}
	if !o.Born {
		faults.add(422, "occurred_at", fmt.Errorf("must not be before the patient's birth date, %s", o.BirthDate))
	}
	return none, faults
}

func noPatient(id int64) *Problem { return refuse(404, fmt.Sprintf("There is no patient %d.", id)) }
func noInteraction(patientID, id int64) *Problem {
	return refuse(404, fmt.Sprintf("Patient %d has no interaction %d.", patientID, id))
}

// filter collects the conditions of a WHERE clause with their parameters, after those that the statement has anyway.
type filter struct {
	where string
	args  []any
}

// and adds a condition, whose %d is the number of its parameter, if it is given.
func (f *filter) and(given bool, condition string, value any) {
	if given {
		f.args = append(f.args, value)
		f.where += fmt.Sprintf(" AND "+condition, len(f.args))
	}
}

// escapeLike makes the wildcards of LIKE plain characters.
var escapeLike = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// page cuts the item beyond the limit off, which tells that there is a next page.
func page[T any](items []T, limit int64, id func(T) int64) PageOf[T] {
	if int64(len(items)) <= limit {
		return PageOf[T]{Items: items}
	}
	return PageOf[T]{Items: items[:limit], NextCursor: new(fmt.Sprint(id(items[limit-1])))}
}

// one returns the one row, or missing where there is none.
func one[T any](ctx context.Context, s *Store, pool *pgxpool.Pool, missing error, scan pgx.RowToFunc[T], query string, args ...any) (T, error) {
	rows, _ := pool.Query(ctx, query, args...) // its error is that of the rows as well
	item, err := pgx.CollectOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return item, missing
	}
	return item, s.explain(err)
}

// ScanTimestamptz reads an Instant from a column. It refuses PostgreSQL's infinity, which has no form in JSON.
func (i *Instant) ScanTimestamptz(v pgtype.Timestamptz) error {
	if v.InfinityModifier != pgtype.Finite {
		return errors.New("a time in the database is infinite")
	}
	*i = Instant(v.Time)
	return nil
}

// scanInteraction leaves the interaction zero where the row is a patient without one.
func scanInteraction(row pgx.CollectableRow) (i Interaction, err error) {
	if row.RawValues()[0] != nil {
		err = row.Scan(&i.ID, &i.PatientID, &i.Doctor.ID, &i.Doctor.Name, &i.OccurredAt, &i.RecordedAt, &i.Outcome, &i.Notes, &i.Amends, &i.AmendedBy)
	}
	return i, err
}

func collect[T any](ctx context.Context, s *Store, pool *pgxpool.Pool, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, _ := pool.Query(ctx, query, args...)                 // its error is that of the rows as well
	items, err := pgx.AppendRows(make([]T, 0, 64), rows, scan) // room for a page of the default size
	return items, s.explain(err)
}

// passing matches the codes, of PostgreSQL's appendix A, of what passes: no connection, no resources, a shut-down, a
// statement that took too long, a lock that another holds, and a primary that became a standby.
var passing = regexp.MustCompile(`^(08|53|57|25006|55P03|40001|40P01)`)

// explain tells a database that cannot answer now from a defect of ours.
func (s *Store) explain(err error) error {
	_, connect := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[*net.OpError](err)
	reported := new(pgconn.PgError) // without a code where the server reports nothing
	errors.As(err, &reported)
	switch {
	case err == nil:
		return nil
	case reported.Code == "42P01", reported.Code == "22023", reported.Code == "42501": // no table, no role, no right
		return &Problem{Status: 503, Detail: "The database has no tables for this role: load schema.sql with psql, and take on the role that it makes.", cause: err}
	case reported.Code == "25006": // all connections stay with the old primary
		s.reads.Reset()
		s.writes.Reset()
	case passing.MatchString(reported.Code), connect, network, errors.Is(err, pgconn.ErrConnClosed), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.DeadlineExceeded):
	default:
		return fmt.Errorf("query the database: %w", err)
	}
	return &Problem{Status: 503, Detail: "The database cannot answer right now: repeat the request in a moment.", cause: err}
}
