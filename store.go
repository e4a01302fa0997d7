package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	maxReads         = 8                       // connections for reads; PostgreSQL gains nothing from many more than its cores
	maxWrites        = 8                       // and for writes, apart, so that writers who wait for a locked patient starve no reader
	connectTimeout   = 2 * time.Second         // for each host in the URL; one that is silent must leave time for the next
	statementTimeout = 3500 * time.Millisecond // under requestTimeout, so that PostgreSQL stops first and keeps the connection
	lockTimeout      = 500 * time.Millisecond  // for a patient's row; a write takes milliseconds, so longer means stuck
)

// Store is PostgreSQL as the service uses it. Its methods are safe for concurrent use, answer a missing patient or
// interaction with a NotFound Error, and a database that cannot answer now with an Unavailable one.
type Store struct{ reads, writes *pgxpool.Pool }

// OpenStore prepares the pools without connecting, so it succeeds while the database is away.
func OpenStore(ctx context.Context, url string) (*Store, error) {
	reads, err := newPool(ctx, url, maxReads)
	if err != nil {
		return nil, err
	}
	writes, err := newPool(ctx, url, maxWrites)
	if err != nil {
		return nil, err
	}
	return &Store{reads, writes}, nil
}

func newPool(ctx context.Context, url string, size int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read DATABASE_URL: %w", err)
	}
	config.MaxConns = size
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.ConnConfig.RuntimeParams["statement_timeout"] = fmt.Sprint(statementTimeout.Milliseconds())
	config.ConnConfig.RuntimeParams["lock_timeout"] = fmt.Sprint(lockTimeout.Milliseconds())
	config.AfterConnect = func(_ context.Context, c *pgx.Conn) error {
		utc := &pgtype.TimestamptzCodec{ScanLocation: time.UTC}
		c.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: utc})
		return nil
	}
	return pgxpool.NewWithConfig(ctx, config)
}

// Close waits for the statements under way.
func (s *Store) Close() {
	s.reads.Close()
	s.writes.Close()
}

// Every statement about one patient compares patient_id, or patients.id, with a parameter, and joins interactions with
// each other on patient_id as well, so that all of it can run on the one shard where the patient lives.

const readyQuery = `SELECT id FROM doctors LIMIT 1`

// Ready tells whether the database answers and holds the tables.
func (s *Store) Ready(ctx context.Context, _ struct{}) (Health, error) {
	_, err := collect(ctx, s.reads, pgx.RowTo[int64], readyQuery)
	return Health{"ok"}, err
}

const doctorsQuery = `
SELECT   id, name, specialty
FROM     doctors
WHERE    true %s
ORDER BY name, id
LIMIT    $1`

// ListDoctors pages through the doctors by name.
func (s *Store) ListDoctors(ctx context.Context, in Paging) (Page[Doctor], error) {
	where, args := filter([]any{in.Limit + 1},
		condition{in.Cursor > 0, "(name, id) > (SELECT name, id FROM doctors WHERE id = $%d)", int64(in.Cursor)},
	)
	doctors, err := collect(ctx, s.reads, scanDoctor, fmt.Sprintf(doctorsQuery, where), args...)
	return page(doctors, in.Limit, func(d Doctor) int64 { return d.ID }), err
}

const patientsQuery = `
SELECT   p.id, p.name, p.birth_date::text, p.health_status, p.last_interaction_at
FROM     patients p
WHERE    true %s
ORDER BY p.name, p.id
LIMIT    $1`

// isCurrent holds for an interaction i that counts: no amendment replaced it, and it strikes out no other.
const isCurrent = `i.outcome <> 'entered_in_error'
    AND NOT EXISTS (SELECT 1 FROM interactions a WHERE a.patient_id = i.patient_id AND a.amends = i.id)`

// ListPatients pages through the patients by name.
func (s *Store) ListPatients(ctx context.Context, in PatientFilter) (Page[Patient], error) {
	where, args := filter([]any{in.Limit + 1},
		condition{in.Search != "", `lower(p.name) LIKE lower($%d COLLATE "und-x-icu")`, "%" + escapeLike.Replace(in.Search) + "%"},
		condition{in.HealthStatus != "", "p.health_status = $%d", in.HealthStatus},
		condition{in.DoctorID > 0, "p.id IN (SELECT i.patient_id FROM interactions i WHERE i.doctor_id = $%d AND " + isCurrent + ")", in.DoctorID},
		condition{in.Cursor > 0, "(p.name, p.id) > (SELECT c.name, c.id FROM patients c WHERE c.id = $%d)", int64(in.Cursor)},
	)
	patients, err := collect(ctx, s.reads, scanPatient, fmt.Sprintf(patientsQuery, where), args...)
	return page(patients, in.Limit, func(p Patient) int64 { return p.ID }), err
}

const patientQuery = `
SELECT id, name, birth_date::text, health_status, last_interaction_at
FROM   patients
WHERE  id = $1`

// GetPatient returns a patient with the present state.
func (s *Store) GetPatient(ctx context.Context, in PatientPath) (Patient, error) {
	patients, err := collect(ctx, s.reads, scanPatient, patientQuery, in.PatientID)
	return only(patients, err, noPatient(in.PatientID))
}

// The patient comes first, so that one without such entries is told from none: it is a row of NULLs. The page is cut
// before that join, which then costs nothing.
const historyQuery = `
SELECT    h.id, h.patient_id, h.doctor_id, h.doctor_name, h.occurred_at, h.recorded_at, h.outcome, h.notes, h.amends, h.amended_by
FROM      patients p
LEFT JOIN (
    SELECT   i.id, i.patient_id, d.id AS doctor_id, d.name AS doctor_name, i.occurred_at, i.recorded_at, i.outcome, i.notes, i.amends, %s AS amended_by
    FROM     interactions i
    JOIN     doctors d ON d.id = i.doctor_id
    %s
    WHERE    i.patient_id = $1 %s
    ORDER BY i.occurred_at DESC, i.id DESC
    LIMIT    $2
) h ON h.patient_id = p.id
WHERE     p.id = $1
ORDER BY  h.occurred_at DESC, h.id DESC`

// joinAmendment finds the entry a that replaced i, if any.
const joinAmendment = `LEFT JOIN interactions a ON a.patient_id = i.patient_id AND a.amends = i.id`

// ListInteractions pages through a patient's history, newest first.
func (s *Store) ListInteractions(ctx context.Context, in InteractionFilter) (Page[Interaction], error) {
	where, args := filter([]any{in.PatientID, in.Limit + 1},
		condition{in.Outcome != "", "i.outcome = $%d", in.Outcome},
		condition{in.DoctorID > 0, "i.doctor_id = $%d", in.DoctorID},
		condition{in.From != nil, "i.occurred_at >= $%d", in.From},
		condition{in.To != nil, "i.occurred_at < $%d", in.To},
		condition{in.Cursor > 0, "(i.occurred_at, i.id) < (SELECT c.occurred_at, c.id FROM interactions c WHERE c.patient_id = $1 AND c.id = $%d)", int64(in.Cursor)},
	)
	query := fmt.Sprintf(historyQuery, "a.id", joinAmendment, where)
	if !in.IncludeAmended { // what is current has no amendment to look for
		query = fmt.Sprintf(historyQuery, "NULL::bigint", "", "AND "+isCurrent+where)
	}
	entries, err := collect(ctx, s.reads, scanInteraction, query, args...)
	if err == nil && len(entries) == 0 {
		err = noPatient(in.PatientID)
	}
	if err == nil && entries[0].ID == 0 {
		entries = entries[:0]
	}
	return page(entries, in.Limit, func(i Interaction) int64 { return i.ID }), err
}

const interactionQuery = `
SELECT i.id, i.patient_id, d.id, d.name, i.occurred_at, i.recorded_at, i.outcome, i.notes, i.amends, a.id
FROM   interactions i
JOIN   doctors d ON d.id = i.doctor_id
` + joinAmendment + `
WHERE  i.patient_id = $1 AND `

const (
	interactionByIDQuery  = interactionQuery + `i.id = $2`
	interactionByKeyQuery = interactionQuery + `i.idempotency_key = $2`
)

// GetInteraction returns any entry of a patient, amended or not.
func (s *Store) GetInteraction(ctx context.Context, in InteractionPath) (Interaction, error) {
	entries, err := collect(ctx, s.reads, scanInteraction, interactionByIDQuery, in.PatientID, in.InteractionID)
	return only(entries, err, noInteraction(in.PatientID, in.InteractionID))
}

// A period is a run of equal outcomes: within it, the difference of the two row numbers stays the same.
const timelineQuery = `
SELECT    p.health_status, t.outcome, t.starts, t.ends, t.interactions
FROM      patients p
LEFT JOIN (
    SELECT   patient_id, outcome, min(occurred_at) AS starts, min(n) AS position, count(*) AS interactions,
             lead(min(occurred_at)) OVER (ORDER BY min(n)) AS ends
    FROM     (SELECT i.patient_id, i.outcome, i.occurred_at,
                     row_number() OVER (ORDER BY i.occurred_at, i.id) AS n,
                     row_number() OVER (PARTITION BY i.outcome ORDER BY i.occurred_at, i.id) AS n_of_outcome
              FROM   interactions i
              WHERE  i.patient_id = $1 AND ` + isCurrent + `) numbered
    GROUP BY patient_id, outcome, n - n_of_outcome
) t ON t.patient_id = p.id
WHERE     p.id = $1
ORDER BY  t.position`

// GetTimeline returns a patient's health over time.
func (s *Store) GetTimeline(ctx context.Context, in PatientPath) (Timeline, error) {
	timeline := Timeline{Items: []Period{}}
	found, err := collect(ctx, s.reads, func(row pgx.CollectableRow) (period Period, err error) {
		if row.RawValues()[1] == nil {
			return period, row.Scan(&timeline.HealthStatus, nil, nil, nil, nil)
		}
		err = row.Scan(&timeline.HealthStatus, &period.Outcome, &period.From, &period.To, &period.Interactions)
		timeline.Items = append(timeline.Items, period)
		return period, err
	}, timelineQuery, in.PatientID)
	if err == nil && len(found) == 0 {
		err = noPatient(in.PatientID)
	}
	return timeline, err
}

// The one statement that writes. It inserts nothing where the patient, the doctor or the amended entry is missing, where
// it would lie before the patient's birth, and where the key is used or the entry amended already.
const insertQuery = `
WITH new AS (
    INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, amends, idempotency_key)
    SELECT    p.id, d.id, coalesce($3, amended.occurred_at, $4), $5, $6, amended.id, $8
    FROM      patients p
    JOIN      doctors d ON d.id = $2
    LEFT JOIN interactions amended ON amended.patient_id = p.id AND amended.id = $7
    WHERE     p.id = $1
      AND     amended.id IS NOT DISTINCT FROM $7
      AND     p.birth_date <= (coalesce($3, amended.occurred_at, $4) AT TIME ZONE 'UTC')::date
    ON CONFLICT DO NOTHING
    RETURNING *
)
SELECT new.id, new.patient_id, d.id, d.name, new.occurred_at, new.recorded_at, new.outcome, new.notes, new.amends, NULL::bigint
FROM   new
JOIN   doctors d ON d.id = new.doctor_id`

// DocumentInteraction records an interaction.
func (s *Store) DocumentInteraction(ctx context.Context, in NewInteraction) (Interaction, error) {
	return s.record(ctx, in.PatientID, nil, in.Outcome, in.Entry)
}

// AmendInteraction records an interaction that replaces an earlier one.
func (s *Store) AmendInteraction(ctx context.Context, in NewAmendment) (Interaction, error) {
	return s.record(ctx, in.PatientID, &in.InteractionID, in.Outcome, in.Entry)
}

func (s *Store) record(ctx context.Context, patientID int64, amends *int64, outcome string, e Entry) (Interaction, error) {
	now := time.Now()
	var key *string
	if e.IdempotencyKey != "" {
		key = &e.IdempotencyKey
	}
	made, err := collect(ctx, s.writes, scanInteraction, insertQuery,
		patientID, e.DoctorID, e.OccurredAt, now, outcome, string(e.Notes), amends, key)
	if err != nil || len(made) == 1 {
		return only(made, err, nil)
	}

	var repeated []Interaction
	var reasons []refusal
	second := &pgx.Batch{} // one round trip
	second.Queue(interactionByKeyQuery, patientID, key).Query(func(rows pgx.Rows) (err error) {
		repeated, err = pgx.CollectRows(rows, scanInteraction)
		return err
	})
	second.Queue(refusalQuery, patientID, e.DoctorID, e.OccurredAt, now, amends).Query(func(rows pgx.Rows) (err error) {
		reasons, err = pgx.CollectRows(rows, pgx.RowToStructByName[refusal])
		return err
	})
	if err := s.writes.SendBatch(ctx, second).Close(); err != nil {
		return Interaction{}, explain(s.writes, err)
	}
	if len(repeated) == 0 {
		return Interaction{}, whyRefused(patientID, amends, e, reasons)
	}
	if r := repeated[0]; !r.answers(amends, outcome, e) {
		return Interaction{}, invalid(FieldError{"Idempotency-Key", fmt.Sprintf("was used for another request, which made interaction %d: choose a new key", r.ID)})
	}
	return repeated[0], nil
}

// refusalQuery asks for all that insertQuery may have stumbled over.
const refusalQuery = `
SELECT    p.birth_date::text,
          p.birth_date <= (coalesce($3, amended.occurred_at, $4) AT TIME ZONE 'UTC')::date AS born,
          d.id IS NOT NULL AS doctor_exists,
          amended.id AS amended,
          later.id AS amended_by
FROM      patients p
LEFT JOIN doctors d ON d.id = $2
LEFT JOIN interactions amended ON amended.patient_id = p.id AND amended.id = $5
LEFT JOIN interactions later ON later.patient_id = p.id AND later.amends = $5
WHERE     p.id = $1`

type refusal struct {
	BirthDate          string
	Born, DoctorExists bool
	Amended, AmendedBy *int64
}

// whyRefused tells all that stood in the way of an entry.
func whyRefused(patientID int64, amends *int64, e Entry, reasons []refusal) error {
	if len(reasons) == 0 {
		return noPatient(patientID)
	}
	r := reasons[0]
	switch {
	case amends != nil && r.Amended == nil:
		return noInteraction(patientID, *amends)
	case r.AmendedBy != nil:
		return &Error{Kind: Conflict, Detail: fmt.Sprintf("Interaction %d is already amended by interaction %d: amend the newest one instead.", *amends, *r.AmendedBy)}
	}
	var faults []FieldError
	if !r.DoctorExists {
		faults = append(faults, FieldError{"doctor_id", fmt.Sprintf("there is no doctor %d", e.DoctorID)})
	}
	if !r.Born {
		faults = append(faults, FieldError{"occurred_at", "must not be before the patient's birth date, " + r.BirthDate})
	}
	if faults == nil {
		return &Error{Kind: Unavailable, Detail: "The record changed meanwhile: repeat the request."}
	}
	return invalid(faults...)
}

func invalid(faults ...FieldError) *Error {
	return &Error{Kind: Invalid, Detail: "The entry cannot be documented as it is: mend the fields in errors.", Fields: faults}
}

func noPatient(id int64) *Error {
	return &Error{Kind: NotFound, Detail: fmt.Sprintf("There is no patient %d.", id)}
}

func noInteraction(patientID, id int64) *Error {
	return &Error{Kind: NotFound, Detail: fmt.Sprintf("Patient %d has no interaction %d.", patientID, id)}
}

// condition is a part of a WHERE clause, for one parameter, that counts only if it is given.
type condition struct {
	given    bool
	fragment string // with $%d for the parameter's number
	value    any
}

// filter returns the conditions that are given, and args with their values.
func filter(args []any, conditions ...condition) (string, []any) {
	var where strings.Builder
	for _, c := range conditions {
		if c.given {
			args = append(args, c.value)
			where.WriteString(" AND " + strings.Replace(c.fragment, "$%d", fmt.Sprintf("$%d", len(args)), 1))
		}
	}
	return where.String(), args
}

// escapeLike makes the wildcards of LIKE plain characters.
var escapeLike = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// page cuts the item beyond the limit off, which tells that there is a next page.
func page[T any](items []T, limit int64, id func(T) int64) Page[T] {
	if int64(len(items)) <= limit {
		return Page[T]{Items: items}
	}
	next := Cursor(id(items[limit-1]))
	return Page[T]{Items: items[:limit], NextCursor: &next}
}

// only returns the one item, or missing where there is none.
func only[T any](items []T, err error, missing *Error) (T, error) {
	var none T
	if err != nil {
		return none, err
	}
	if len(items) == 0 {
		return none, missing
	}
	return items[0], nil
}

func scanDoctor(row pgx.CollectableRow) (d Doctor, err error) {
	err = row.Scan(&d.ID, &d.Name, &d.Specialty)
	return d, err
}

func scanPatient(row pgx.CollectableRow) (p Patient, err error) {
	err = row.Scan(&p.ID, &p.Name, &p.BirthDate, &p.HealthStatus, &p.LastInteractionAt)
	return p, err
}

// scanInteraction leaves the interaction zero where the row is a patient without one.
func scanInteraction(row pgx.CollectableRow) (i Interaction, err error) {
	if row.RawValues()[0] == nil {
		return i, nil
	}
	err = row.Scan(&i.ID, &i.PatientID, &i.Doctor.ID, &i.Doctor.Name, &i.OccurredAt, &i.RecordedAt, &i.Outcome, &i.Notes, &i.Amends, &i.AmendedBy)
	return i, err
}

func collect[T any](ctx context.Context, pool *pgxpool.Pool, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, err := pool.Query(ctx, query, args...)
	if err != nil {
		return nil, explain(pool, err)
	}
	items, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, explain(pool, err)
	}
	return items, nil
}

// explain tells a database that cannot answer now from a defect of ours. Codes are PostgreSQL's, appendix A of its
// documentation.
func explain(pool *pgxpool.Pool, err error) error {
	var reported *pgconn.PgError
	var connect *pgconn.ConnectError
	var network *net.OpError
	detail := "The database cannot answer right now: repeat the request in a moment."
	switch {
	case errors.As(err, &connect), errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
	case errors.As(err, &reported) && reported.Code == "42P01":
		detail = "The database holds no tables: load schema.sql with psql."
	case reported != nil && reported.Code == "25006": // a primary that became a standby
		pool.Reset()
	case reported != nil && (strings.Contains("08 53 57", reported.Code[:2]) || strings.Contains("55P03 40001 40P01", reported.Code)):
	default:
		return fmt.Errorf("query the database: %w", err)
	}
	return &Error{Kind: Unavailable, Detail: detail, cause: err}
}
