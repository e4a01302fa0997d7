package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptest"
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
	requestTimeout = 4 * time.Second // for a request as a whole; a doctor would have clicked again
	maxBody        = 128 << 10       // 10,000 characters, each escaped as two \uXXXX, and the rest of the body
)

// operation is one row of the API. The mux and the OpenAPI document are both built from it.
type operation struct {
	method, path, tag, id, summary, description string
	status                                      int
	endpoint                                    endpoint
}

func operations(s *Store, document *json.RawMessage) []operation {
	return []operation{
		{"GET", "/patients", "patients", "listPatients", "Find patients", "Patients by name, filtered by any part of the name, the present state and a doctor.", 200, handle(s.ListPatients)},
		{"GET", "/patients/{patient_id}", "patients", "getPatient", "See a patient's present state", "The patient with the outcome of the latest current interaction.", 200, handle(s.GetPatient)},
		{"GET", "/patients/{patient_id}/timeline", "patients", "getTimeline", "See a patient's health over time", "Consecutive current interactions of one outcome make one period, oldest first.", 200, handle(s.GetTimeline)},
		{"GET", "/patients/{patient_id}/interactions", "interactions", "listInteractions", "Read a patient's history", "Newest first; only current entries, unless include_amended is true.", 200, handle(s.ListInteractions)},
		{"POST", "/patients/{patient_id}/interactions", "interactions", "documentInteraction", "Document an interaction", "Records who saw the patient, when, and what was found.", 201, handle(s.DocumentInteraction)},
		{"GET", "/patients/{patient_id}/interactions/{interaction_id}", "interactions", "getInteraction", "Read one interaction", "Any entry, amended or not.", 200, handle(s.GetInteraction)},
		{"POST", "/patients/{patient_id}/interactions/{interaction_id}/amendments", "interactions", "amendInteraction", "Amend an interaction", "Replaces an entry, which stays readable; entered_in_error strikes it out. An entry can be amended once: 409 names the amendment.", 201, handle(s.AmendInteraction)},
		{"GET", "/doctors", "doctors", "listDoctors", "List the doctors", "Doctors by name.", 200, handle(s.ListDoctors)},
		{"GET", "/livez", "service", "checkLiveness", "Does the service run?", "Answers as long as the process serves.", 200, handle(func(context.Context, struct{}) (Health, error) { return Health{"ok"}, nil })},
		{"GET", "/readyz", "service", "checkReadiness", "Does the database answer too?", "503 says what is missing.", 200, handle(s.Ready)},
		{"GET", "/openapi.json", "service", "getDocument", "Read this document", "OpenAPI 3.1.", 200, handle(func(context.Context, struct{}) (json.RawMessage, error) { return *document, nil })},
	}
}

// newHandler returns the whole service.
func newHandler(s *Store, log *slog.Logger) (http.Handler, error) {
	var document json.RawMessage
	mux, all := http.NewServeMux(), operations(s, &document)
	for _, op := range all {
		mux.HandleFunc(op.method+" "+op.path, func(w http.ResponseWriter, r *http.Request) {
			res := w.(*response)
			res.err = op.endpoint.serve(res, r, op.status)
		})
	}
	var err error
	if document, err = newDocument(all); err != nil {
		return nil, err
	}
	mux.Handle("GET /docs/", swaggerUI())
	mux.Handle("GET /{$}", http.RedirectHandler("/docs/", http.StatusFound))
	return &service{mux, log, http.NewCrossOriginProtection()}, nil
}

// service is what every request goes through, whatever its path.
type service struct {
	mux         *http.ServeMux
	log         *slog.Logger
	crossOrigin *http.CrossOriginProtection
}

func (s *service) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start, id := time.Now(), rand.Text()
	w := &response{ResponseWriter: rw, status: http.StatusOK}
	w.Header().Set("X-Request-Id", id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	s.route(w, r)
	if w.err != nil {
		w.problem(w.err)
	}
	attrs := []any{"method", r.Method, "route", r.Pattern, "status", w.status, "duration", time.Since(start), "request_id", id}
	if w.status >= 500 {
		attrs = append(attrs, "error", w.err)
	}
	s.log.Info("request", attrs...)
}

func (s *service) route(w *response, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			w.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if s.crossOrigin.Check(r) != nil {
		w.err = refuse(http.StatusForbidden, "Another web page may not write here.")
		return
	}
	unmatched, pattern := s.mux.Handler(r)
	if pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	plain := httptest.NewRecorder()
	unmatched.ServeHTTP(plain, r)
	switch plain.Code {
	case http.StatusNotFound:
		w.err = refuse(http.StatusNotFound, "There is nothing at this path: see /docs/.")
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", plain.Header().Get("Allow"))
		w.err = refuse(http.StatusMethodNotAllowed, "This path does not take this method: see the header Allow.")
	default:
		unmatched.ServeHTTP(w, r)
	}
}

// response remembers what the log line tells.
type response struct {
	http.ResponseWriter
	status int
	err    error
}

func (w *response) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) json(status int, contentType string, v any) error {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(body.Bytes()) // a client that is gone needs no answer
	return nil
}

// refusal of the HTTP layer itself, which no Kind names.
type httpError struct {
	status int
	detail string
	fields []FieldError
}

func (e *httpError) Error() string { return e.detail }

func refuse(status int, detail string, fields ...FieldError) error {
	return &httpError{status, detail, fields}
}

// problem is the only place that knows the statuses of errors.
func (w *response) problem(err error) {
	p := Problem{Type: "about:blank", Status: http.StatusInternalServerError, Detail: "The service has a defect: tell its operator the X-Request-Id."}
	var own *httpError
	var domain *Error
	switch {
	case errors.As(err, &own):
		p.Status, p.Detail, p.Errors = own.status, own.detail, own.fields
	case errors.As(err, &domain):
		p.Status = map[Kind]int{NotFound: 404, Conflict: 409, Invalid: 422, Unavailable: 503}[domain.Kind]
		p.Detail, p.Errors = domain.Detail, domain.Fields
	}
	p.Title = http.StatusText(p.Status)
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.json(p.Status, "application/problem+json", p)
}

// endpoint is a typed function as HTTP sees it.
type endpoint struct {
	in, out any
	serve   func(w *response, r *http.Request, status int) error
}

func handle[In, Out any](answer func(context.Context, In) (Out, error)) endpoint {
	fields := fieldsOf(reflect.TypeFor[In]())
	return endpoint{new(In), new(Out), func(w *response, r *http.Request, status int) error {
		var in In
		if len(fields) > 0 {
			if err := decode(r, fields, &in); err != nil {
				return err
			}
		}
		out, err := answer(r.Context(), in)
		if err != nil {
			return err
		}
		if made, ok := any(out).(Interaction); ok && status == http.StatusCreated {
			w.Header().Set("Location", fmt.Sprintf("/patients/%d/interactions/%d", made.PatientID, made.ID))
		}
		return w.json(status, "application/json", out)
	}}
}

// field is one field of an input, with the limits of its tags.
type field struct {
	index          []int
	source, name   string
	byDefault      string
	min, max       int64
	enum           []string
	pattern        *regexp.Regexp
	required, body bool
}

func fieldsOf(t reflect.Type) (fields []field) {
	for _, f := range reflect.VisibleFields(t) {
		for _, source := range []string{"path", "query", "header", "json"} {
			name, _, _ := strings.Cut(f.Tag.Get(source), ",")
			if name == "" || name == "-" {
				continue
			}
			number := func(tags ...string) int64 {
				for _, tag := range tags[:2] {
					if n, err := strconv.ParseInt(f.Tag.Get(tag), 10, 64); err == nil {
						return n
					}
				}
				n, _ := strconv.ParseInt(tags[2], 10, 64)
				return n
			}
			one := field{index: f.Index, source: source, name: name, byDefault: f.Tag.Get("default"), body: source == "json", required: f.Tag.Get("required") == "true",
				min: number("minimum", "minLength", "0"), max: number("maximum", "maxLength", "9223372036854775807")}
			if enum := f.Tag.Get("enum"); enum != "" {
				one.enum = strings.Split(enum, ",")
			}
			if pattern := f.Tag.Get("pattern"); pattern != "" {
				one.pattern = regexp.MustCompile(pattern)
			}
			fields = append(fields, one)
		}
	}
	return fields
}

// decode fills in from the request and checks it by its tags: 400 for what cannot be read, 422 for a body that may not be.
func decode(r *http.Request, fields []field, in any) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return refuse(400, "The query cannot be read: escape its special characters with %.")
	}
	var faults, bodyFaults []FieldError
	for name, values := range query {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.source == "query" && f.name == name }) {
			faults = append(faults, FieldError{name, "is no parameter of this operation"})
		} else if len(values) > 1 {
			faults = append(faults, FieldError{name, "must be given once"})
		}
	}
	v := reflect.ValueOf(in).Elem()
	if slices.ContainsFunc(fields, func(f field) bool { return f.body }) {
		if err := decodeBody(r, in); err != nil {
			return err
		}
	}
	for _, f := range fields {
		if f.body {
			if fault := f.fault(v.FieldByIndex(f.index)); fault != "" {
				bodyFaults = append(bodyFaults, FieldError{f.name, fault})
			}
			continue
		}
		text, given := f.byDefault, f.byDefault != ""
		switch values := r.Header.Values(f.name); f.source {
		case "path":
			text, given = r.PathValue(f.name), true
		case "query":
			if value := query.Get(f.name); value != "" {
				text, given = value, true
			}
		case "header":
			if len(values) > 1 {
				faults = append(faults, FieldError{f.name, "must be given once"})
			}
			if len(values) > 0 {
				text, given = values[0], true
			}
		}
		if !given {
			continue
		}
		if fault := f.set(v.FieldByIndex(f.index), text); fault != "" {
			faults = append(faults, FieldError{f.name, fault})
		}
	}
	if e, ok := in.(interface{ faults(time.Time) []FieldError }); ok {
		bodyFaults = append(bodyFaults, e.faults(time.Now())...)
	}
	if faults != nil {
		return refuse(400, "The request cannot be read: see errors.", faults...)
	}
	if bodyFaults != nil {
		return invalid(bodyFaults...)
	}
	return nil
}

func (f field) set(v reflect.Value, text string) string {
	switch to := v.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		if err := to.UnmarshalText([]byte(text)); err != nil {
			return err.Error()
		}
		return ""
	case **time.Time:
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return "must be a time such as 2024-05-13T09:30:00Z (in a URL write + as %2B)"
		}
		*to = &at
		return ""
	case *bool:
		*to = text == "true"
		if text != "true" && text != "false" {
			return "must be true or false"
		}
		return ""
	case *int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Sprintf("must be an integer from %d to %d", f.min, f.max)
		}
		*to = n
	case *string:
		*to = text
	}
	return f.fault(v)
}

// fault says what is wrong with a value, or nothing.
func (f field) fault(v reflect.Value) string {
	if f.required && v.IsZero() {
		return "must be given and must not be empty"
	}
	switch v.Kind() {
	case reflect.Int64:
		if n := v.Int(); n < f.min || n > f.max {
			return fmt.Sprintf("must be an integer from %d to %d", f.min, f.max)
		}
	case reflect.String:
		switch text := v.String(); {
		case int64(utf8.RuneCountInString(text)) < f.min:
			return "must not be empty"
		case int64(utf8.RuneCountInString(text)) > f.max:
			return fmt.Sprintf("must be at most %d characters long", f.max)
		case strings.ContainsRune(text, 0):
			return "must not contain the character NUL"
		case !utf8.ValidString(text):
			return "must be UTF-8"
		case f.pattern != nil && !f.pattern.MatchString(text):
			return "must match " + f.pattern.String()
		case f.enum != nil && !slices.Contains(f.enum, text):
			return "must be one of " + strings.Join(f.enum, ", ")
		}
	}
	return ""
}

// soundEscape matches every escape of a JSON string but half a surrogate pair, which encoding/json would replace in silence.
var soundEscape = regexp.MustCompile(`\\(?:[^u]|u[^dD]...|u[dD][0-7]..|u[dD][89abAB]..\\u[dD][c-fC-F]..)`)

func decodeBody(r *http.Request, in any) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return refuse(http.StatusUnsupportedMediaType, "The body must be application/json.")
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	var wrongType *json.UnmarshalTypeError
	var noTime *time.ParseError
	switch {
	case errors.As(err, &tooLarge):
		return refuse(http.StatusRequestEntityTooLarge, "The body must be at most 128 KiB.")
	case err != nil:
		return refuse(400, "The body did not arrive whole.")
	case !utf8.Valid(body):
		return refuse(400, "The body must be UTF-8.")
	case strings.Contains(soundEscape.ReplaceAllString(string(body), ""), `\u`):
		return refuse(400, "The body holds an escape of half a surrogate pair.")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(in)
	switch {
	case errors.As(err, &wrongType):
		name := wrongType.Field[strings.LastIndexByte(wrongType.Field, '.')+1:]
		return refuse(400, "The body has a value of a wrong type.", FieldError{name, "must not be a " + wrongType.Value})
	case errors.As(err, &noTime):
		return refuse(400, "The body has a time that is none: write it as 2024-05-13T09:30:00Z.")
	case err != nil:
		return refuse(400, "The body cannot be read: "+strings.TrimPrefix(err.Error(), "json: ")+".")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return refuse(400, "The body must end after its one object.")
	}
	return nil
}
