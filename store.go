package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	connectTimeout = 2 * time.Second

	// statementTimeout is shorter than answerTimeout, so that PostgreSQL cancels a statement before the service closes
	// its connection.
	statementTimeout = 3500 * time.Millisecond

	// lockTimeout is how long a write waits for other writes of the same patient.
	lockTimeout = 500 * time.Millisecond
)

// Store reads and writes the database. Its methods return a Problem if the client should be told what is wrong: 404,
// 409 or 422 for the request, and 503 if the database cannot answer now. Any other error is a defect.
type Store struct {
	pool *pgxpool.Pool
}

// OpenStore returns a Store for the database at url. It does not connect, so it succeeds while the database is away.
func OpenStore(ctx context.Context, url string) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("read DATABASE_URL: %w", err)
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.ConnConfig.RuntimeParams["statement_timeout"] = milliseconds(statementTimeout)
	config.ConnConfig.RuntimeParams["lock_timeout"] = milliseconds(lockTimeout)
	config.ConnConfig.RuntimeParams["datestyle"] = "ISO" // for birth_date::text
	config.AfterConnect = scanTimesInUTC

	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open the connection pool: %w", err)
	}
	return &Store{pool}, nil
}

func milliseconds(d time.Duration) string {
	return strconv.FormatInt(d.Milliseconds(), 10)
}

// scanTimesInUTC replaces pgx's default, which is the local time zone.
func scanTimesInUTC(_ context.Context, conn *pgx.Conn) error {
	conn.TypeMap().RegisterType(&pgtype.Type{
		Name:  "timestamptz",
		OID:   pgtype.TimestamptzOID,
		Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC},
	})
	return nil
}

// Close waits until no statement runs, and closes all connections.
func (s *Store) Close() {
	s.pool.Close()
}

// CheckReadiness returns an error unless the database answers and has the tables.
func (s *Store) CheckReadiness(ctx context.Context, _ struct{}) (Health, error) {
	if _, err := s.pool.Exec(ctx, "SELECT 1 FROM interactions LIMIT 1"); err != nil {
		return Health{}, unavailable("The database does not answer, or it has no tables for the service's role.", err)
	}
	return Health{"ok"}, nil
}

// ListDoctors returns a page of the doctors, ordered by name.
func (s *Store) ListDoctors(ctx context.Context, in Paging) (Page[Doctor], error) {
	query := "SELECT id, name, specialty FROM doctors"
	args := pgx.StrictNamedArgs{}
	if in.Cursor != "" {
		query += " WHERE (name, id) > (SELECT name, id FROM doctors WHERE id = @cursor)"
		args["cursor"] = in.Cursor
	}
	query += " ORDER BY name, id"

	id := func(d Doctor) int64 { return d.ID }
	return collectPage(ctx, s, in.Limit, id, pgx.RowToStructByPos[Doctor], query, args)
}

// selectPatients has its columns in the order of the fields of Patient.
const selectPatients = `
	SELECT p.id, p.name, p.birth_date::text, p.health_status, p.last_interaction_at
	FROM   patients p
	WHERE  true`

// ListPatients returns a page of the patients that match the filter, ordered by name.
func (s *Store) ListPatients(ctx context.Context, in PatientFilter) (Page[Patient], error) {
	query := selectPatients
	args := pgx.StrictNamedArgs{}
	for i, word := range strings.Fields(in.Search) {
		name := fmt.Sprintf("word%d", i)
		query += " AND p.search_name LIKE searchable(@" + name + ")"
		args[name] = "%" + escapeLike.Replace(word) + "%"
	}
	if in.HealthStatus != "" {
		query += " AND p.health_status = @health_status"
		args["health_status"] = in.HealthStatus
	}
	if in.DoctorID != 0 {
		query += ` AND EXISTS (
			SELECT 1 FROM current_interactions i WHERE i.patient_id = p.id AND i.doctor_id = @doctor_id)`
		args["doctor_id"] = in.DoctorID
	}
	if in.Cursor != "" {
		query += " AND (p.name, p.id) > (SELECT c.name, c.id FROM patients c WHERE c.id = @cursor)"
		args["cursor"] = in.Cursor
	}
	query += " ORDER BY p.name, p.id"

	// A search is planned for its words each time. The generic plan of a prepared statement does not know them, and
	// reads the patients by name instead of using the index of trigrams. pgx takes a mode in front of the arguments.
	mode := pgx.QueryExecModeCacheStatement
	if in.Search != "" {
		mode = pgx.QueryExecModeCacheDescribe
	}
	id := func(p Patient) int64 { return p.ID }
	return collectPage(ctx, s, in.Limit, id, pgx.RowToStructByPos[Patient], query, mode, args)
}

// escapeLike makes the wildcards of LIKE ordinary characters.
var escapeLike = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// GetPatient returns a patient.
func (s *Store) GetPatient(ctx context.Context, in PatientPath) (Patient, error) {
	query := selectPatients + " AND p.id = @patient_id"
	args := pgx.StrictNamedArgs{"patient_id": in.PatientID}
	return collectOne(ctx, s, noPatient(in.PatientID), pgx.RowToStructByPos[Patient], query, args)
}

// selectInteractions returns a statement that selects a patient's interactions from a view, or from the rows that an
// INSERT returns. An INSERT may not see the doctor, see insert. The doctor is looked up by a sub-select, as
// amendments are in the views. The statement compares patient_id with a parameter, so that a distributed PostgreSQL
// asks only one node.
func selectInteractions(from string) string {
	return `
		SELECT i.id, i.patient_id, i.doctor_id,
		       coalesce((SELECT d.name FROM doctors d WHERE d.id = i.doctor_id), '') AS doctor_name,
		       i.occurred_at, i.recorded_at, i.outcome, i.notes, i.amends, i.amended_by
		FROM   ` + from + ` i
		WHERE  i.patient_id = @patient_id`
}

func scanInteraction(row pgx.CollectableRow) (i Interaction, err error) {
	err = row.Scan(&i.ID, &i.PatientID, &i.Doctor.ID, &i.Doctor.Name, &i.OccurredAt, &i.RecordedAt,
		&i.Outcome, &i.Notes, &i.Amends, &i.AmendedBy)
	return i, err
}

// ListInteractions returns a page of a patient's interactions that match the filter, the latest first.
func (s *Store) ListInteractions(ctx context.Context, in InteractionFilter) (Page[Interaction], error) {
	view := "current_interactions"
	if in.IncludeAmended {
		view = "all_interactions"
	}
	query := selectInteractions(view)
	args := pgx.StrictNamedArgs{"patient_id": in.PatientID}
	if in.Outcome != "" {
		query += " AND i.outcome = @outcome"
		args["outcome"] = in.Outcome
	}
	if in.DoctorID != 0 {
		query += " AND i.doctor_id = @doctor_id"
		args["doctor_id"] = in.DoctorID
	}
	if in.From != nil {
		query += " AND i.occurred_at >= @from"
		args["from"] = in.From
	}
	if in.To != nil {
		query += " AND i.occurred_at < @to"
		args["to"] = in.To
	}
	if in.Cursor != "" {
		query += ` AND (i.occurred_at, i.id) < (
			SELECT c.occurred_at, c.id FROM interactions c WHERE c.patient_id = @patient_id AND c.id = @cursor)`
		args["cursor"] = in.Cursor
	}
	query += " ORDER BY i.occurred_at DESC, i.id DESC"

	id := func(i Interaction) int64 { return i.ID }
	page, err := collectPage(ctx, s, in.Limit, id, scanInteraction, query, args)
	if err == nil && len(page.Items) == 0 {
		_, err = s.GetPatient(ctx, in.PatientPath) // is there such a patient?
	}
	return page, err
}

// GetInteraction returns an interaction, whether it is current or not.
func (s *Store) GetInteraction(ctx context.Context, in InteractionPath) (Interaction, error) {
	query := selectInteractions("all_interactions") + " AND i.id = @id"
	args := pgx.StrictNamedArgs{"patient_id": in.PatientID, "id": in.InteractionID}
	detail := fmt.Sprintf("Patient %d has no interaction %d.", in.PatientID, in.InteractionID)
	return collectOne(ctx, s, newProblem(http.StatusNotFound, detail), scanInteraction, query, args)
}

// selectPeriods is the usual query for "gaps and islands". It numbers the interactions twice: all of them, and those
// with the same outcome. The difference of the two numbers stays the same within a period. The columns are in the
// order of the fields of Period.
const selectPeriods = `
	SELECT   outcome,
	         min(occurred_at),
	         lead(min(occurred_at)) OVER (ORDER BY min(position)),
	         count(*)
	FROM     (
		SELECT outcome,
		       occurred_at,
		       row_number() OVER (ORDER BY occurred_at, id) AS position,
		       row_number() OVER (PARTITION BY outcome ORDER BY occurred_at, id) AS position_in_outcome
		FROM   current_interactions
		WHERE  patient_id = @patient_id
	) numbered
	GROUP BY outcome, position - position_in_outcome
	ORDER BY min(position)`

// GetTimeline returns a patient's health over time.
func (s *Store) GetTimeline(ctx context.Context, in PatientPath) (Timeline, error) {
	args := pgx.StrictNamedArgs{"patient_id": in.PatientID}
	periods, err := collect(ctx, s, pgx.RowToStructByPos[Period], selectPeriods, args)
	if err != nil {
		return Timeline{}, err
	}
	if len(periods) == 0 {
		_, err := s.GetPatient(ctx, in) // is there such a patient?
		return Timeline{HealthStatus: "unknown", Items: periods}, err
	}
	return Timeline{HealthStatus: periods[len(periods)-1].Outcome, Items: periods}, nil
}

// DocumentInteraction adds an interaction to a patient's history.
func (s *Store) DocumentInteraction(ctx context.Context, in NewInteraction) (Interaction, error) {
	return s.insert(ctx, insertion{
		patientID:      in.PatientID,
		doctorID:       in.DoctorID,
		outcome:        in.Outcome,
		notes:          in.Notes,
		occurredAt:     in.OccurredAt,
		idempotencyKey: in.IdempotencyKey.Key,
	})
}

// AmendInteraction adds an interaction that replaces an earlier one.
func (s *Store) AmendInteraction(ctx context.Context, in NewAmendment) (Interaction, error) {
	amended, err := s.GetInteraction(ctx, in.InteractionPath)
	if err != nil {
		return Interaction{}, err
	}
	return s.insert(ctx, insertion{
		patientID:         in.PatientID,
		doctorID:          in.DoctorID,
		outcome:           in.Outcome,
		notes:             in.Notes,
		occurredAt:        in.OccurredAt,
		defaultOccurredAt: &amended.OccurredAt,
		amends:            &amended.ID,
		idempotencyKey:    in.IdempotencyKey.Key,
	})
}

// insertion is what a request asks to insert. The default of occurred_at is kept apart, because a repeated request
// without a time matches any time.
type insertion struct {
	patientID         int64
	doctorID          int64
	outcome           string
	notes             string
	occurredAt        *time.Time // nil if the request has none
	defaultOccurredAt *time.Time // nil means now
	amends            *int64
	idempotencyKey    string
}

var insertInteraction = `
	WITH new AS (
		INSERT INTO interactions (patient_id, doctor_id, occurred_at, outcome, notes, amends, idempotency_key)
		VALUES (@patient_id, @doctor_id, coalesce(@occurred_at, @default_occurred_at, now()), @outcome, @notes, @amends,
		        nullif(@idempotency_key, ''))
		RETURNING *, NULL::bigint AS amended_by
	)` + selectInteractions("new")

// insert inserts an interaction and returns it. If the key was used for the same request before, it returns the
// interaction that was inserted then. The database checks the rules: the name of the violated one decides the answer.
func (s *Store) insert(ctx context.Context, in insertion) (Interaction, error) {
	args := pgx.StrictNamedArgs{
		"patient_id":          in.patientID,
		"doctor_id":           in.doctorID,
		"occurred_at":         in.occurredAt,
		"default_occurred_at": in.defaultOccurredAt,
		"outcome":             in.outcome,
		"notes":               in.notes,
		"amends":              in.amends,
		"idempotency_key":     in.idempotencyKey,
	}
	created, err := collectOne(ctx, s, noPatient(in.patientID), scanInteraction, insertInteraction, args)
	switch {
	case err == nil && created.Doctor.Name == "":
		// The statement had to wait, and the doctor was added after it had begun.
		return s.GetInteraction(ctx, InteractionPath{PatientPath{in.patientID}, created.ID})
	case violates(err, "interactions_patient"):
		return Interaction{}, noPatient(in.patientID)
	case violates(err, "interactions_doctor"):
		return Interaction{}, validationProblem(FieldError{"doctor_id", "must be the id of a doctor"})
	case violates(err, "occurred_at_not_before_birth"),
		violates(err, "occurred_at_has_four_digit_year"): // before the year 1, as maxAhead excludes the other end
		fault := FieldError{"occurred_at", "must not be before the patient's birth date"}
		return Interaction{}, validationProblem(fault)
	case violates(err, "interactions_idempotency_key"), violates(err, "interactions_amended_once"):
		return s.resolveConflict(ctx, in)
	default:
		return created, err
	}
}

// resolveConflict answers a request whose key was used before, or which amends an interaction that is amended
// already. A repeated amendment is both, and PostgreSQL reports only one, so the key is looked up first. An empty key
// finds nothing.
func (s *Store) resolveConflict(ctx context.Context, in insertion) (Interaction, error) {
	query := selectInteractions("all_interactions") + " AND i.idempotency_key = @key"
	args := pgx.StrictNamedArgs{"patient_id": in.patientID, "key": in.idempotencyKey}
	found, err := collect(ctx, s, scanInteraction, query, args)
	switch {
	case err != nil:
		return Interaction{}, err
	case len(found) > 0 && in.describes(found[0]):
		return found[0], nil
	case len(found) > 0:
		return Interaction{}, validationProblem(FieldError{"Idempotency-Key", "was used for another request"})
	}

	// The key is not the conflict, so it is the amended interaction.
	amended, err := s.GetInteraction(ctx, InteractionPath{PatientPath{in.patientID}, *in.amends})
	if err != nil {
		return Interaction{}, err
	}
	detail := fmt.Sprintf("Interaction %d is already amended by interaction %d. Amend the newest one.",
		amended.ID, *amended.AmendedBy)
	return Interaction{}, newProblem(http.StatusConflict, detail)
}

// describes reports whether i is the interaction that the request asks for.
func (in insertion) describes(i Interaction) bool {
	sameTime := in.occurredAt == nil || in.occurredAt.Equal(i.OccurredAt)
	return sameTime && in.doctorID == i.Doctor.ID && in.outcome == i.Outcome && in.notes == i.Notes &&
		reflect.DeepEqual(in.amends, i.Amends)
}

func noPatient(id int64) *Problem {
	return newProblem(http.StatusNotFound, fmt.Sprintf("There is no patient %d.", id))
}

// collect returns the rows of a query.
func collect[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, _ := s.pool.Query(ctx, query, args...) // CollectRows returns its error too
	items, err := pgx.CollectRows(rows, scan)
	if err != nil && isTemporary(err) {
		return nil, unavailable("The database does not answer at the moment. Repeat the request.", err)
	}
	if err != nil {
		return nil, fmt.Errorf("query the database: %w", err)
	}
	return items, nil
}

// collectOne returns the only row of a query, or the problem missing if there is none.
func collectOne[T any](
	ctx context.Context, s *Store, missing *Problem, scan pgx.RowToFunc[T], query string, args pgx.StrictNamedArgs,
) (item T, err error) {
	items, err := collect(ctx, s, scan, query, args)
	if err != nil {
		return item, err
	}
	if len(items) == 0 {
		return item, missing
	}
	return items[0], nil
}

// collectPage returns the first rows of a query as a page. It asks for one row more than the limit, to see whether
// there is a next page, whose cursor is the id of the last item. The limit is in the text of the statement, because
// PostgreSQL would have to guess a parameter in its generic plan.
func collectPage[T any](
	ctx context.Context, s *Store, limit int64, id func(T) int64, scan pgx.RowToFunc[T], query string, args ...any,
) (Page[T], error) {
	items, err := collect(ctx, s, scan, fmt.Sprintf("%s LIMIT %d", query, limit+1), args...)
	if err != nil {
		return Page[T]{}, err
	}
	if int64(len(items)) <= limit {
		return Page[T]{Items: items}, nil
	}
	items = items[:limit]
	cursor := strconv.FormatInt(id(items[limit-1]), 10)
	return Page[T]{Items: items, NextCursor: &cursor}, nil
}

// violates reports whether err says that a row violates a rule of the schema. It looks for the rule's name in the
// message, because Citus, a distributed PostgreSQL, reports it nowhere else. So no name may be a part of another one.
func violates(err error, rule string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.HasPrefix(pgErr.Code, "23") && strings.Contains(pgErr.Message, rule)
}

// temporaryCodes are the SQLSTATEs of transient errors: connections, resources, shut-down or time limit, I/O, a
// read-only server, a lock that is not available, a serialization failure, a deadlock.
var temporaryCodes = regexp.MustCompile(`^(08|53|57|58|25006|55P03|40001|40P01)`)

// isTemporary reports whether err means that the database cannot answer now.
func isTemporary(err error) bool {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && temporaryCodes.MatchString(pgErr.Code) {
		return true
	}
	_, isConnectError := errors.AsType[*pgconn.ConnectError](err)
	_, isNetworkError := errors.AsType[*net.OpError](err)
	return isConnectError || isNetworkError ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}

func unavailable(detail string, cause error) *Problem {
	p := newProblem(http.StatusServiceUnavailable, detail)
	p.cause = cause
	return p
}
