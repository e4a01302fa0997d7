package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
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

	// statusClientGone is logged if the client has disconnected before the answer. nginx introduced it.
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
	problems    []int // the statuses of its own problems, beside those of every request
}

func newOperations(store *Store) []operation {
	return []operation{
		{
			method:      "GET",
			path:        "/patients",
			id:          "listPatients",
			tag:         "patients",
			summary:     "Find patients",
			description: "Ordered by name. `search` finds the names that contain all of its words, ignoring case and accents.",
			endpoint:    read(store.ListPatients),
			problems:    []int{422, 503},
		},
		{
			method:      "GET",
			path:        "/patients/{patient_id}",
			id:          "getPatient",
			tag:         "patients",
			summary:     "See a patient's health status",
			description: "It is the outcome of the current interaction that occurred last, or `unknown` if there is none.",
			endpoint:    read(store.GetPatient),
			problems:    []int{404, 422, 503},
		},
		{
			method:      "GET",
			path:        "/patients/{patient_id}/timeline",
			id:          "getTimeline",
			tag:         "patients",
			summary:     "See a patient's health over time",
			description: "Consecutive current interactions with the same outcome form one period.",
			endpoint:    read(store.GetTimeline),
			problems:    []int{404, 422, 503},
		},
		{
			method:  "GET",
			path:    "/patients/{patient_id}/interactions",
			id:      "listInteractions",
			tag:     "interactions",
			summary: "Read a patient's history",
			description: "Latest `occurred_at` first. It has the current interactions: neither amended nor entered in error. " +
				"With `include_amended` it has all.",
			endpoint: read(store.ListInteractions),
			problems: []int{404, 422, 503},
		},
		{
			method:  "POST",
			path:    "/patients/{patient_id}/interactions",
			id:      "documentInteraction",
			tag:     "interactions",
			summary: "Document an interaction",
			description: "`occurred_at` is now by default. It is at most 5 minutes in the future, and not before the birth " +
				"date. " + retries,
			endpoint: create(store.DocumentInteraction),
			problems: []int{404, 422, 503},
		},
		{
			method:      "GET",
			path:        "/patients/{patient_id}/interactions/{interaction_id}",
			id:          "getInteraction",
			tag:         "interactions",
			summary:     "Read an interaction",
			description: "Any interaction of the patient, amended or not.",
			endpoint:    read(store.GetInteraction),
			problems:    []int{404, 422, 503},
		},
		{
			method:  "POST",
			path:    "/patients/{patient_id}/interactions/{interaction_id}/amendments",
			id:      "amendInteraction",
			tag:     "interactions",
			summary: "Amend an interaction",
			description: "Replaces an interaction, which stays readable. The outcome `entered_in_error` strikes it from the " +
				"record. `occurred_at` stays the same by default. An interaction can be amended once; amend the amendment " +
				"to change it again. " + retries,
			endpoint: create(store.AmendInteraction),
			problems: []int{404, 409, 422, 503},
		},
		{
			method:      "GET",
			path:        "/doctors",
			id:          "listDoctors",
			tag:         "doctors",
			summary:     "List the doctors",
			description: "Ordered by name.",
			endpoint:    read(store.ListDoctors),
			problems:    []int{422, 503},
		},
		{
			method:      "GET",
			path:        "/livez",
			id:          "checkLiveness",
			tag:         "service",
			summary:     "Is the service running?",
			description: "Whether the database answers or not.",
			endpoint:    read(checkLiveness),
		},
		{
			method:      "GET",
			path:        "/readyz",
			id:          "checkReadiness",
			tag:         "service",
			summary:     "Can the service answer requests?",
			description: "The database answers and has the tables.",
			endpoint:    read(store.CheckReadiness),
			problems:    []int{503},
		},
	}
}

const retries = "Repeat a request with the same `Idempotency-Key` to get the interaction that it created the first time."

func checkLiveness(context.Context, struct{}) (Health, error) {
	return Health{"ok"}, nil
}

// newHandler returns the handler of the whole service.
func newHandler(store *Store, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	allowed := map[string][]string{
		"/{$}":          {"GET", "HEAD"},
		"/docs/":        {"GET", "HEAD"},
		"/openapi.json": {"GET", "HEAD"},
	}

	operations := newOperations(store)
	for _, op := range operations {
		mux.HandleFunc(op.method+" "+op.path, func(w http.ResponseWriter, r *http.Request) {
			if err := op.endpoint.serve(w, r); err != nil {
				writeProblem(w, r, log, err)
			}
		})
		allowed[op.path] = append(allowed[op.path], op.method)
		if op.method == "GET" {
			allowed[op.path] = append(allowed[op.path], "HEAD")
		}
	}

	document := newDocument(operations)
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, r *http.Request) {
		writeBody(w, http.StatusOK, "application/json", document)
	})
	mux.Handle("GET /docs/", swaggerUI())
	mux.Handle("GET /{$}", http.RedirectHandler("/docs/", http.StatusFound))

	// The mux prefers more specific patterns, so these serve what is left over.
	for path, methods := range allowed {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(methods, ", "))
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
			writeProblem(recorder, r, log, newProblem(http.StatusForbidden, "Requests from other web sites are refused."))
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

// endpoint is what an operation does: serve answers a request, or returns an error. The input is a zero value of the
// type that a request is decoded into, and the output one of the type of the answer.
type endpoint struct {
	input  any
	output any
	status int
	serve  func(w http.ResponseWriter, r *http.Request) error
}

// read returns an endpoint that answers with what query returns.
func read[In, Out any](query func(context.Context, In) (Out, error)) endpoint {
	var input In
	var output Out
	fields := fieldsOf(input)
	serve := func(w http.ResponseWriter, r *http.Request) error {
		out, err := call(w, r, fields, query)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, out)
	}
	return endpoint{input: input, output: output, status: http.StatusOK, serve: serve}
}

// create returns an endpoint that answers with the interaction that insert returns, and with its path.
func create[In any](insert func(context.Context, In) (Interaction, error)) endpoint {
	var input In
	fields := fieldsOf(input)
	serve := func(w http.ResponseWriter, r *http.Request) error {
		created, err := call(w, r, fields, insert)
		if err != nil {
			return err
		}
		w.Header().Set("Location", fmt.Sprintf("/patients/%d/interactions/%d", created.PatientID, created.ID))
		return writeJSON(w, http.StatusCreated, created)
	}
	return endpoint{input: input, output: Interaction{}, status: http.StatusCreated, serve: serve}
}

// call decodes the request and calls f with it. The time limit starts once the request has been read, because long
// notes can take a while to arrive.
func call[In, Out any](
	w http.ResponseWriter, r *http.Request, fields []field, f func(context.Context, In) (Out, error),
) (out Out, err error) {
	var in In
	if err := decode(w, r, fields, &in); err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	return f(ctx, in)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	writeBody(w, status, "application/json", body)
	return nil
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
	if errors.Is(r.Context().Err(), context.Canceled) {
		w.WriteHeader(statusClientGone)
		return
	}

	problem, ok := errors.AsType[*Problem](err)
	if !ok {
		problem = newProblem(http.StatusInternalServerError, "The service has a defect. Report the X-Request-Id.")
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
	required    bool
	fallback    string // what counts if it is not given; empty for none
	isInteger   bool
	min, max    int64 // of an integer, or of the number of characters of a text
	trim        bool
	enum        []string
	pattern     *regexp.Regexp
	maxAhead    time.Duration // of a time, from now; 0 for any time
}

// fieldsOf returns the fields of an input type in the order in which faults are reported. It panics if a tag is
// malformed.
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
		fallback:    tag.Get("default"),
		isInteger:   structField.Type.Kind() == reflect.Int64,
		min:         numberTag(tag, "minLength", 0),
		max:         numberTag(tag, "maxLength", math.MaxInt64),
		trim:        tag.Get("trim") == "true",
	}
	if f.isInteger {
		f.min = numberTag(tag, "minimum", math.MinInt64)
		f.max = numberTag(tag, "maximum", math.MaxInt64)
	}
	if enum := tag.Get("enum"); enum != "" {
		f.enum = strings.Split(enum, ",")
	}
	if pattern := tag.Get("pattern"); pattern != "" {
		f.pattern = regexp.MustCompile(pattern)
	}
	if maxAhead := tag.Get("maxAhead"); maxAhead != "" {
		var err error
		if f.maxAhead, err = time.ParseDuration(maxAhead); err != nil {
			panic(fmt.Sprintf("tag maxAhead of %s: %v", name, err))
		}
	}
	return f
}

// numberTag returns the number in a tag, or fallback if there is no such tag.
func numberTag(tag reflect.StructTag, name string, fallback int64) int64 {
	text, ok := tag.Lookup(name)
	if !ok {
		return fallback
	}
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("tag %s: %v", name, err))
	}
	return number
}

// decode reads the request into in, a pointer to an input type, or returns a Problem that names every faulty field.
func decode(w http.ResponseWriter, r *http.Request, fields []field, in any) error {
	if len(fields) == 0 {
		return nil
	}
	query, err := readQuery(r)
	if err != nil {
		return err
	}
	var body map[string]json.RawMessage
	if r.Method == http.MethodPost {
		if body, err = readBody(w, r); err != nil {
			return err
		}
	}

	var faults []FieldError
	for _, f := range fields {
		text, given, err := f.take(r, query, body)
		switch {
		case err != nil:
		case given:
			err = f.parse(text, reflect.ValueOf(in).Elem().FieldByIndex(f.index))
		case f.required:
			err = errors.New("is required")
		}
		if err != nil {
			faults = append(faults, FieldError{f.name, err.Error()})
		}
	}
	unknown := slices.Concat(slices.Collect(maps.Keys(query)), slices.Collect(maps.Keys(body)))
	for _, name := range slices.Sorted(slices.Values(unknown)) {
		faults = append(faults, FieldError{name, "is unknown"})
	}
	if len(faults) > 0 {
		return validationProblem(faults...)
	}
	return nil
}

func readQuery(r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, newProblem(http.StatusBadRequest, "The query string cannot be parsed. Percent-encode special characters.")
	}
	if unescaped, _ := url.QueryUnescape(r.URL.RawQuery); !utf8.ValidString(unescaped) {
		return nil, newProblem(http.StatusBadRequest, "The query string must be UTF-8.")
	}
	return query, nil
}

func readBody(w http.ResponseWriter, r *http.Request) (map[string]json.RawMessage, error) {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return nil, newProblem(http.StatusUnsupportedMediaType, "The Content-Type must be application/json.")
	}

	content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
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

// take removes the field from the query or the body, so that unknown names are left over. It returns the field's
// text, and whether the request has one.
func (f field) take(r *http.Request, query url.Values, body map[string]json.RawMessage) (string, bool, error) {
	var values []string
	switch f.source {
	case "path":
		values = []string{r.PathValue(f.name)}
	case "query":
		values = query[f.name]
		delete(query, f.name)
	case "header":
		values = r.Header.Values(f.name)
	case "json":
		raw, given := body[f.name]
		delete(body, f.name)
		return f.unquote(raw, given)
	}

	if len(values) > 1 {
		return "", false, errors.New("must be given only once")
	}
	if len(values) == 0 || values[0] == "" && f.source == "query" {
		return f.fallback, f.fallback != "", nil
	}
	return values[0], true, nil
}

// unquote returns the text of a JSON value, which must be a string unless the field is an integer. A null counts as
// not given.
func (f field) unquote(raw json.RawMessage, given bool) (text string, ok bool, err error) {
	if !given || string(raw) == "null" {
		return "", false, nil
	}
	if f.isInteger {
		return string(raw), true, nil
	}
	if json.Unmarshal(raw, &text) != nil {
		return "", false, errors.New("must be a string")
	}
	return text, true, nil
}

// parse sets target, a field of an input, to the value of text. Errors of parse are written for the client.
func (f field) parse(text string, target reflect.Value) (err error) {
	switch target := target.Addr().Interface().(type) {
	case *int64:
		*target, err = f.parseInteger(text)
	case *string:
		*target, err = f.parseText(text)
	case *bool:
		*target = text == "true"
		if text != "true" && text != "false" {
			err = errors.New("must be true or false")
		}
	case **time.Time:
		*target, err = f.parseTime(text)
	default:
		panic(fmt.Sprintf("field %s has a type that cannot be decoded: %T", f.name, target))
	}
	return err
}

func (f field) parseInteger(text string) (int64, error) {
	number, err := strconv.ParseInt(text, 10, 64)
	plain := err == nil && strconv.FormatInt(number, 10) == text // not +1 or 01
	if !plain || number < f.min || number > f.max {
		if f.max == math.MaxInt64 {
			return 0, fmt.Errorf("must be an integer of at least %d", f.min)
		}
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

// parseTime cuts what is finer than a microsecond, as PostgreSQL does not keep it.
func (f field) parseTime(text string) (*time.Time, error) {
	parsed, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, errors.New("must be a time with an offset, such as 2024-05-13T09:30:00Z")
	}
	if f.maxAhead > 0 && time.Until(parsed) > f.maxAhead {
		return nil, fmt.Errorf("must be at most %.0f minutes in the future", f.maxAhead.Minutes())
	}
	truncated := parsed.Truncate(time.Microsecond)
	return &truncated, nil
}
