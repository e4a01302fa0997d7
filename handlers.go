package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// answerTimeout bounds the time to answer a request once it has been read.
	answerTimeout = 4 * time.Second

	// maxBodyBytes leaves room for the longest notes, with every character escaped.
	maxBodyBytes = 128 << 10

	// statusClientGone is logged if the client hung up while it waited for the answer. The number comes from nginx.
	statusClientGone = 499
)

// operation is one operation of the API. The mux and the OpenAPI document are built from it.
type operation struct {
	method      string
	path        string
	id          string
	tag         string
	summary     string
	description string
	endpoint    endpoint
	example     any   // a body for POST, which Swagger UI suggests
	problems    []int // the errors that the document lists one by one; other client errors are 4XX
}

func newOperations(store *Store) []operation {
	return []operation{
		{
			method:      "GET",
			path:        "/patients",
			id:          "listPatients",
			tag:         "patients",
			summary:     "Find patients",
			description: "Ordered by name. `search` finds names that contain all its words, ignoring case and accents.",
			endpoint:    newEndpoint(200, store.ListPatients),
			problems:    []int{422, 503},
		},
		{
			method:      "GET",
			path:        "/patients/{patient_id}",
			id:          "getPatient",
			tag:         "patients",
			summary:     "See a patient's health status",
			description: "It is the outcome of the current interaction that occurred last, or `unknown` without one.",
			endpoint:    newEndpoint(200, store.GetPatient),
			problems:    []int{404, 422, 503},
		},
		{
			method:      "GET",
			path:        "/patients/{patient_id}/timeline",
			id:          "getTimeline",
			tag:         "patients",
			summary:     "See a patient's health over time",
			description: "Consecutive current interactions with the same outcome form one period.",
			endpoint:    newEndpoint(200, store.GetTimeline),
			problems:    []int{404, 422, 503},
		},
		{
			method:  "GET",
			path:    "/patients/{patient_id}/interactions",
			id:      "listInteractions",
			tag:     "interactions",
			summary: "Read a patient's history",
			description: "Latest first. Only current interactions, neither amended nor entered in error, unless " +
				"`include_amended` is true.",
			endpoint: newEndpoint(200, store.ListInteractions),
			problems: []int{404, 422, 503},
		},
		{
			method:  "POST",
			path:    "/patients/{patient_id}/interactions",
			id:      "documentInteraction",
			tag:     "interactions",
			summary: "Document an interaction",
			description: "`occurred_at` is the current time by default. It is at most 5 minutes in the future and " +
				"not before the birth date. " + retryNote,
			endpoint: newEndpoint(201, store.DocumentInteraction),
			example: bodyExample{
				DoctorID: 2,
				Outcome:  "healthy",
				Notes:    "No palpitations since the last visit. ECG: sinus rhythm, 68/min. Bisoprolol continued.",
			},
			problems: []int{404, 422, 503},
		},
		{
			method:      "GET",
			path:        "/patients/{patient_id}/interactions/{interaction_id}",
			id:          "getInteraction",
			tag:         "interactions",
			summary:     "Read an interaction",
			description: "Any interaction of the patient, amended or not.",
			endpoint:    newEndpoint(200, store.GetInteraction),
			problems:    []int{404, 422, 503},
		},
		{
			method:  "POST",
			path:    "/patients/{patient_id}/interactions/{interaction_id}/amendments",
			id:      "amendInteraction",
			tag:     "interactions",
			summary: "Amend an interaction",
			description: "Replaces an interaction, which stays readable. The outcome `entered_in_error` strikes it " +
				"from the record. `occurred_at` stays the same by default. An interaction can be amended once; to " +
				"change it again, amend the amendment. " + retryNote,
			endpoint: newEndpoint(201, store.AmendInteraction),
			example: bodyExample{
				DoctorID: 1,
				Outcome:  "healthy",
				Notes:    "Registration check-up. No complaints. BP 138/82 mmHg, not 128/82 as first written.",
			},
			problems: []int{404, 409, 422, 503},
		},
		{
			method:      "GET",
			path:        "/doctors",
			id:          "listDoctors",
			tag:         "doctors",
			summary:     "List the doctors",
			description: "Ordered by name.",
			endpoint:    newEndpoint(200, store.ListDoctors),
			problems:    []int{422, 503},
		},
		{
			method:      "GET",
			path:        "/livez",
			id:          "checkLiveness",
			tag:         "service",
			summary:     "Is the service running?",
			description: "Whether the database answers or not.",
			endpoint:    newEndpoint(200, checkLiveness),
		},
		{
			method:      "GET",
			path:        "/readyz",
			id:          "checkReadiness",
			tag:         "service",
			summary:     "Can the service answer requests?",
			description: "The database answers and has the tables.",
			endpoint:    newEndpoint(200, store.CheckReadiness),
			problems:    []int{503},
		},
	}
}

// bodyExample is a body without its optional fields, and without the path and header of its input type.
type bodyExample struct {
	DoctorID int64  `json:"doctor_id"`
	Outcome  string `json:"outcome"`
	Notes    string `json:"notes"`
}

const retryNote = "Repeated with its `Idempotency-Key`, the request returns the interaction created the first time."

func checkLiveness(context.Context, struct{}) (Health, error) {
	return Health{"ok"}, nil
}

// newHandler returns the handler of the whole service.
func newHandler(store *Store, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{} // by path
	register := func(method, path string, handler http.Handler) {
		mux.Handle(method+" "+path, handler)
		methods[path] = append(methods[path], method)
		if method == "GET" {
			methods[path] = append(methods[path], "HEAD")
		}
	}

	operations := newOperations(store)
	for _, op := range operations {
		register(op.method, op.path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := op.endpoint.serve(w, r); err != nil {
				writeProblem(w, r, log, err)
			}
		}))
	}
	document := newDocument(operations)
	register("GET", "/openapi.json", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeBody(w, http.StatusOK, "application/json", document)
	}))
	register("GET", "/docs/", swaggerUI())
	register("GET", "/{$}", http.RedirectHandler("/docs/", http.StatusFound))

	// These patterns are less specific than those above and catch what is left, so that 404 and 405 are problems too.
	for path, allowed := range methods {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			writeProblem(w, r, log, newProblem(http.StatusMethodNotAllowed, "This path does not support the method."))
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, r, log, newProblem(http.StatusNotFound, "There is nothing at this path; see /docs/."))
	})
	return middleware(mux, log)
}

// middleware does what every request needs: an id, security headers, protection from other web pages and from panics,
// and one line in the log. The line has no value of the path, the query or the body, because these are medical
// records.
func middleware(next http.Handler, log *slog.Logger) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		requestID := rand.Text()
		recorder.Header().Set("X-Request-Id", requestID)
		recorder.Header().Set("X-Content-Type-Options", "nosniff")
		recorder.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")

		defer func() {
			if p := recover(); p != nil {
				writeProblem(recorder, r, log, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
			}
			log.Info("request", "method", r.Method, "route", r.Pattern, "status", recorder.status,
				"duration", time.Since(start), "request_id", requestID)
		}()

		if err := crossOrigin.Check(r); err != nil {
			writeProblem(recorder, r, log, newProblem(http.StatusForbidden, "Cross-origin writes are not allowed."))
			return
		}
		next.ServeHTTP(recorder, r)
	})
}

// statusRecorder remembers the status for the log.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (w *statusRecorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// endpoint is what an operation does. Its input and output are zero values, whose types the OpenAPI document
// describes.
type endpoint struct {
	input  any
	output any
	status int
	serve  func(w http.ResponseWriter, r *http.Request) error
}

// newEndpoint returns an endpoint that decodes a request, calls f with it, and answers with the status and what f
// returns. If an interaction was created, the answer has its path in Location.
func newEndpoint[In, Out any](status int, f func(context.Context, In) (Out, error)) endpoint {
	var zeroInput In
	var zeroOutput Out
	fields := fieldsOf(zeroInput)

	serve := func(w http.ResponseWriter, r *http.Request) error {
		var input In
		if err := decode(r, fields, &input); err != nil {
			return err
		}
		// The time limit starts only now, because long notes can take a while to arrive.
		ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
		defer cancel()
		output, err := f(ctx, input)
		if err != nil {
			return err
		}

		body, err := json.Marshal(output)
		if err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
		if created, ok := any(output).(Interaction); ok && status == http.StatusCreated {
			w.Header().Set("Location", fmt.Sprintf("/patients/%d/interactions/%d", created.PatientID, created.ID))
		}
		writeBody(w, status, "application/json", body)
		return nil
	}
	return endpoint{input: zeroInput, output: zeroOutput, status: status, serve: serve}
}

func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(body) // an error means that the client has gone
}

// writeProblem answers with err if it is a Problem. Any other error is a defect of the service, which only the log
// describes.
func writeProblem(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		w.WriteHeader(statusClientGone)
		return
	}

	problem, ok := errors.AsType[*Problem](err)
	if !ok {
		problem = newProblem(http.StatusInternalServerError, "Internal error. Please report it with the X-Request-Id.")
	}
	if problem.Status >= 500 {
		log.Error("request failed", "error", err, "request_id", w.Header().Get("X-Request-Id"))
	}
	if problem.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	body, _ := json.Marshal(problem) // strings and numbers can always be encoded
	writeBody(w, problem.Status, "application/problem+json", body)
}

// field is a field of an input type: where it comes from, and what its tags allow.
type field struct {
	index       []int  // see reflect.Value.FieldByIndex
	source      string // path, query, header or json
	name        string
	description string
	isString    bool // in JSON
	required    bool
	defaultText string // what counts if the field is not given
	min, max    int64  // of an integer, or of the number of characters of a text
	trim        bool
	enum        []string
	pattern     *regexp.Regexp
	maxAhead    time.Duration // of a time, from now; 0 if any time is allowed
}

// fieldsOf returns the fields of an input type, in the order in which faults are reported. It panics if a tag cannot
// be parsed.
func fieldsOf(input any) []field {
	var fields []field
	for _, source := range []string{"path", "query", "header", "json"} {
		for _, structField := range reflect.VisibleFields(reflect.TypeOf(input)) {
			name, _, _ := strings.Cut(structField.Tag.Get(source), ",")
			if name != "" {
				fields = append(fields, newField(structField, source, name))
			}
		}
	}
	return fields
}

func newField(structField reflect.StructField, source, name string) field {
	tag := structField.Tag
	f := field{
		index:       structField.Index,
		source:      source,
		name:        name,
		description: tag.Get("description"),
		required:    tag.Get("required") == "true",
		defaultText: tag.Get("default"),
		min:         numberTag(tag, 0, "minimum", "minLength"),
		max:         numberTag(tag, math.MaxInt64, "maximum", "maxLength"),
		trim:        tag.Get("trim") == "true",
	}
	switch structField.Type {
	case reflect.TypeFor[string](), reflect.TypeFor[*time.Time]():
		f.isString = true
	case reflect.TypeFor[int64](), reflect.TypeFor[bool]():
	default:
		panic(fmt.Sprintf("field %s has a type that cannot be decoded: %s", name, structField.Type))
	}
	if enum := tag.Get("enum"); enum != "" {
		f.enum = strings.Split(enum, ",")
	}
	if pattern := tag.Get("pattern"); pattern != "" {
		f.pattern = regexp.MustCompile(pattern)
	}
	if maxAhead := tag.Get("maxAhead"); maxAhead != "" {
		duration, err := time.ParseDuration(maxAhead)
		if err != nil {
			panic(fmt.Sprintf("tag maxAhead: %v", err))
		}
		f.maxAhead = duration
	}
	return f
}

// numberTag returns the number in the tag that has one of the names, or fallback if there is none.
func numberTag(tag reflect.StructTag, fallback int64, names ...string) int64 {
	for _, name := range names {
		if text, ok := tag.Lookup(name); ok {
			number, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				panic(fmt.Sprintf("tag %s: %v", name, err))
			}
			return number
		}
	}
	return fallback
}

// decode reads the request into input, a pointer to an input type. Its error is a Problem that names every faulty
// field.
func decode(r *http.Request, fields []field, input any) error {
	if len(fields) == 0 {
		return nil // a probe may have any query
	}
	query, err := readQuery(r)
	if err != nil {
		return err
	}
	var body map[string]json.RawMessage
	if r.Method == http.MethodPost {
		if body, err = readBody(r); err != nil {
			return err
		}
	}

	var faults []FieldError
	target := reflect.ValueOf(input).Elem()
	for _, f := range fields {
		if err := f.set(target.FieldByIndex(f.index), r, query, body); err != nil {
			faults = append(faults, FieldError{f.name, err.Error()})
		}
	}
	faults = append(faults, unknownNames(fields, query, body)...)
	if len(faults) > 0 {
		return validationProblem(faults...)
	}
	return nil
}

// unknownNames returns a fault for each name in the query or the body that no field has, in alphabetical order.
func unknownNames(fields []field, query url.Values, body map[string]json.RawMessage) []FieldError {
	isUnknown := func(source, name string) bool {
		return !slices.ContainsFunc(fields, func(f field) bool { return f.source == source && f.name == name })
	}
	var faults []FieldError
	for name := range query {
		if isUnknown("query", name) {
			faults = append(faults, FieldError{name, "is not a query parameter of this operation"})
		}
	}
	for name := range body {
		if isUnknown("json", name) {
			faults = append(faults, FieldError{name, "is not a field of this body"})
		}
	}
	slices.SortFunc(faults, func(a, b FieldError) int { return strings.Compare(a.Field, b.Field) })
	return faults
}

func readQuery(r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, newProblem(http.StatusBadRequest, "The query string is malformed. Escape special characters.")
	}
	// All names and values at once. The error is that of ParseQuery.
	if unescaped, _ := url.QueryUnescape(r.URL.RawQuery); !utf8.ValidString(unescaped) {
		return nil, newProblem(http.StatusBadRequest, "The query string must be UTF-8.")
	}
	return query, nil
}

func readBody(r *http.Request) (map[string]json.RawMessage, error) {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return nil, newProblem(http.StatusUnsupportedMediaType, "The Content-Type must be application/json.")
	}

	// Without a ResponseWriter it does not close the connection, which net/http does by itself after 256 KiB.
	content, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBodyBytes))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, newProblem(http.StatusRequestEntityTooLarge, "The body must have at most 128 KiB.")
	}
	if err != nil {
		return nil, newProblem(http.StatusBadRequest, "The body did not arrive completely.")
	}

	var body map[string]json.RawMessage
	if !utf8.Valid(content) || json.Unmarshal(content, &body) != nil || body == nil {
		return nil, newProblem(http.StatusBadRequest, "The body must be one JSON object in UTF-8.")
	}
	return body, nil
}

// set sets target, a field of the input, to what the request has. Its errors are written for the client.
func (f field) set(target reflect.Value, r *http.Request, query url.Values, body map[string]json.RawMessage) error {
	values, err := f.values(r, query, body)
	switch {
	case err != nil:
		return err
	case len(values) > 1:
		return errors.New("must be given only once")
	case len(values) == 1:
		return f.parse(values[0], target)
	case f.defaultText != "":
		return f.parse(f.defaultText, target)
	case f.required:
		return errors.New("is required")
	default:
		return nil
	}
}

// values returns what the request has for the field.
func (f field) values(r *http.Request, query url.Values, body map[string]json.RawMessage) ([]string, error) {
	switch f.source {
	case "path":
		return []string{r.PathValue(f.name)}, nil
	case "query":
		values := query[f.name]
		if len(values) == 1 && values[0] == "" {
			return nil, nil
		}
		return values, nil
	case "header":
		return r.Header.Values(f.name), nil
	}

	raw := body[f.name]
	if raw == nil || string(raw) == "null" {
		return nil, nil
	}
	text := string(raw)
	if f.isString && json.Unmarshal(raw, &text) != nil {
		return nil, errors.New("must be a string")
	}
	return []string{text}, nil
}

// parse sets target to the value of text.
func (f field) parse(text string, target reflect.Value) (err error) {
	switch value := target.Addr().Interface().(type) {
	case *int64:
		*value, err = f.parseInteger(text)
	case *string:
		*value, err = f.parseText(text)
	case *bool:
		*value, err = parseBool(text)
	case **time.Time:
		*value, err = f.parseTime(text)
	}
	return err
}

func parseBool(text string) (bool, error) {
	if text != "true" && text != "false" {
		return false, errors.New("must be true or false")
	}
	return text == "true", nil
}

func (f field) parseInteger(text string) (int64, error) {
	number, err := strconv.ParseInt(text, 10, 64)
	plain := err == nil && strconv.FormatInt(number, 10) == text // not +1 or 01
	if !plain || number < f.min || number > f.max {
		return 0, fmt.Errorf("must be an integer from %d to %d", f.min, f.max)
	}
	return number, nil
}

func (f field) parseText(text string) (string, error) {
	if f.trim {
		text = strings.TrimSpace(text)
	}
	characters := int64(utf8.RuneCountInString(text))
	switch {
	case characters < f.min:
		return "", errors.New("must not be empty")
	case characters > f.max:
		return "", fmt.Errorf("must have at most %d characters", f.max)
	case strings.ContainsRune(text, 0):
		return "", errors.New("must not contain the character NUL")
	case f.enum != nil && !slices.Contains(f.enum, text):
		return "", fmt.Errorf("must be one of %s", strings.Join(f.enum, ", "))
	case f.pattern != nil && !f.pattern.MatchString(text):
		return "", fmt.Errorf("must be %s", f.description)
	}
	return text, nil
}

// rfc3339 matches the form of a time more strictly than time.Parse, which accepts the offset +24:00, for example.
var rfc3339 = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// parseTime cuts times to microseconds, which is what PostgreSQL keeps, so that a repeated request compares equal.
func (f field) parseTime(text string) (*time.Time, error) {
	parsed, err := time.Parse(time.RFC3339, text)
	if err != nil || !rfc3339.MatchString(text) {
		return nil, errors.New("must be a time with an offset, such as 2024-05-13T09:30:00Z")
	}
	if f.maxAhead > 0 && time.Until(parsed) > f.maxAhead {
		return nil, fmt.Errorf("must be at most %.0f minutes in the future", f.maxAhead.Minutes())
	}
	parsed = parsed.Truncate(time.Microsecond)
	return &parsed, nil
}
