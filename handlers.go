package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const requestTimeout = 4 * time.Second // for a request as a whole; a doctor would have clicked again
const maxBody = 128 << 10              // 10,000 characters, each escaped as two \uXXXX, and the rest of the body
const maxSending = 128 << 20           // bytes of answers being written; beyond it, one over smallAnswer is refused. JSON makes up to 60 MB of a page
const smallAnswer = 64 << 10           // bytes; 50 entries of 1,000 characters always go out

// operation is one row of the API. The mux and the OpenAPI document are both built from it.
type operation struct {
	method, path, tag, id string
	answers               []int // the statuses, that of success first; what every operation may refuse is left out
	endpoint              endpoint
	summary, description  string
}

func operations(s *Store, document *json.RawMessage) []operation {
	return []operation{
		{"GET", "/patients", "patients", "listPatients", []int{200, 503}, handle(s.ListPatients), "Find patients", "By name, filtered by any part of the name, the present state and a doctor. All filters have to hold."},
		{"GET", "/patients/{patient_id}", "patients", "getPatient", []int{200, 404, 503}, handle(s.GetPatient), "See a patient's present state",
			"The health status is the outcome of the current interaction that occurred last, or `unknown` where there is none."},
		{"GET", "/patients/{patient_id}/timeline", "patients", "getTimeline", []int{200, 404, 503}, handle(s.GetTimeline), "See a patient's health over time",
			"Consecutive current interactions of one outcome make one period, oldest first. A period ends where the next begins."},
		{"GET", "/patients/{patient_id}/interactions", "interactions", "listInteractions", []int{200, 404, 503}, handle(s.ListInteractions), "Read a patient's history",
			"Newest first. Only current entries, that is, neither amended nor struck out, unless `include_amended` is true."},
		{"POST", "/patients/{patient_id}/interactions", "interactions", "documentInteraction", []int{201, 404, 422, 503}, handle(s.DocumentInteraction), "Document an interaction",
			"Who saw the patient, when, and what was found. Notes hold 1 to 10,000 characters, the body at most 128 KiB. With an `Idempotency-Key` the request can be repeated safely."},
		{"GET", "/patients/{patient_id}/interactions/{interaction_id}", "interactions", "getInteraction", []int{200, 404, 503}, handle(s.GetInteraction), "Read one interaction", "Any entry of the patient, amended or not."},
		{"POST", "/patients/{patient_id}/interactions/{interaction_id}/amendments", "interactions", "amendInteraction", []int{201, 404, 409, 422, 503}, handle(s.AmendInteraction), "Amend an interaction",
			"Replaces an entry, which stays readable; the outcome `entered_in_error` strikes it from the record. An entry can be amended once: a second request answers 409 and names the amendment, which can be amended in turn."},
		{"GET", "/doctors", "doctors", "listDoctors", []int{200, 503}, handle(s.ListDoctors), "List the doctors", "By name. Their ids are the `doctor_id` of interactions."},
		{"GET", "/livez", "service", "checkLiveness", []int{200}, handle(func(context.Context, struct{}) (Probe, error) { return Probe{"ok"}, nil }), "Does the service run?", "Answers as long as the process serves, whatever the database does."},
		{"GET", "/readyz", "service", "checkReadiness", []int{200, 503}, handle(s.CheckReadiness), "Does the database answer too?", "503 says what is missing."},
		{"GET", "/openapi.json", "service", "getDocument", []int{200}, handle(func(context.Context, struct{}) (json.RawMessage, error) { return *document, nil }), "Read this document", "OpenAPI 3.1, to generate clients from."},
	}
}

// newHandler returns the whole service.
func newHandler(s *Store, log *slog.Logger) http.Handler {
	var document json.RawMessage
	mux, all := http.NewServeMux(), operations(s, &document)
	for _, op := range all {
		mux.HandleFunc(op.method+" "+op.path, func(w http.ResponseWriter, r *http.Request) {
			w.(*response).err = op.endpoint.serve(w.(*response), r, op.answers[0])
		})
	}
	mux.Handle("GET /docs/", swaggerUI())
	mux.Handle("GET /{$}", http.RedirectHandler("/docs/", http.StatusFound))
	document = newDocument(all)
	return around(mux, log)
}

// around is what every request goes through, whatever its path. It writes one log line, without a name, a note, a value
// of the query or a body: these are medical records.
func around(mux *http.ServeMux, log *slog.Logger) http.HandlerFunc {
	crossOrigin, sending := http.NewCrossOriginProtection(), new(atomic.Int64)
	return func(rw http.ResponseWriter, r *http.Request) {
		start, id := time.Now(), rand.Text()
		// A client that is gone does not cut its statement short, which would cost the connection.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		w := &response{ResponseWriter: rw, status: 200, sending: sending}
		w.Header().Set("X-Request-Id", id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		defer func() {
			if p := recover(); p != nil {
				w.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			if w.err != nil {
				w.problem()
			}
			attrs := []any{"method", r.Method, "route", r.Pattern, "status", w.status, "duration", time.Since(start), "request_id", id}
			if w.status >= 500 {
				attrs = append(attrs, "error", w.err)
			}
			log.Info("request", attrs...)
		}()
		if crossOrigin.Check(r) != nil {
			w.err = refuse(403, "Another web page may not write here.")
			return
		}
		mux.ServeHTTP(w, r)
	}
}

// response remembers what the log line tells.
type response struct {
	http.ResponseWriter
	status  int
	err     error         // to be answered as a problem
	sending *atomic.Int64 // bytes, by all responses
}

// WriteHeader turns the plain 404 and 405 of net/http into problems.
func (w *response) WriteHeader(status int) {
	w.status = status
	if w.Header().Get("Content-Type") == "text/plain; charset=utf-8" {
		w.err = refuse(status, "There is no such path, or it does not take this method: see /docs/.")
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(body []byte) (int, error) {
	if w.err != nil {
		return len(body), nil
	}
	return w.ResponseWriter.Write(body)
}

func (w *response) json(status int, contentType string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	defer w.sending.Add(-int64(len(body)))
	if w.sending.Add(int64(len(body))) > maxSending && len(body) > smallAnswer {
		return refuse(503, "Too many large pages are on their way: repeat the request with a smaller limit.")
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.ResponseWriter.Write(body) // a client that is gone needs no answer
	return nil
}

// problem answers with w.err, which is a defect of ours where it is no Problem.
func (w *response) problem() {
	problem, ok := errors.AsType[*Problem](w.err)
	if !ok {
		problem = refuse(500, "The service has a defect: tell its operator the X-Request-Id.")
	}
	problem.Type, problem.Title = "about:blank", http.StatusText(problem.Status)
	if problem.Status == 503 {
		w.Header().Set("Retry-After", "1")
	}
	w.json(problem.Status, "application/problem+json", problem)
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
		if err := decode(r, fields, &in); err != nil {
			return err
		}
		out, err := answer(r.Context(), in)
		if err != nil {
			return err
		}
		if made, ok := any(out).(Interaction); ok && status == 201 {
			w.Header().Set("Location", fmt.Sprintf("/patients/%d/interactions/%d", made.PatientID, made.ID))
		}
		return w.json(status, "application/json", out)
	}}
}

// field is one field of an input, with the limits of its tags.
type field struct {
	reflect.StructField
	source, name string
	min, max     int64         // of a number, or of the length of a text
	maxAhead     time.Duration // of a time, for clients whose clock runs a little fast
	enum         []string
	pattern      *regexp.Regexp
}

func fieldsOf(t reflect.Type) (fields []field) {
	for _, v := range reflect.VisibleFields(t) {
		tag := v.Tag.Get
		for _, source := range []string{"path", "query", "header", "json"} {
			if name, _, _ := strings.Cut(tag(source), ","); name != "" && name != "-" {
				f := field{StructField: v, source: source, name: name, max: 1<<63 - 1, pattern: regexp.MustCompile(tag("pattern"))}
				fmt.Sscan(tag("minimum")+tag("minLength"), &f.min)
				fmt.Sscan(tag("maximum")+tag("maxLength"), &f.max)
				f.maxAhead, _ = time.ParseDuration(tag("maxAhead"))
				f.enum = strings.FieldsFunc(tag("enum"), func(c rune) bool { return c == ',' })
				fields = append(fields, f)
			}
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
	if r.Method == http.MethodPost {
		if err := decodeBody(r, in); err != nil {
			return err
		}
	}
	found := invalid()
	for _, f := range fields {
		v := reflect.ValueOf(in).Elem().FieldByIndex(f.Index)
		switch f.source {
		case "path":
			found.add(400, f.name, f.set(v, r.PathValue(f.name)))
		case "query":
			found.add(400, f.name, f.set(v, query[f.name]...))
			delete(query, f.name)
		case "header":
			found.add(400, f.name, f.set(v, r.Header[f.name]...))
		case "json":
			found.add(422, f.name, f.check(v))
		}
	}
	for name := range query {
		found.add(400, name, errors.New("is no parameter of this operation"))
	}
	if found.Errors != nil {
		return found
	}
	return nil
}

// set gives v the value that the request has for the field. Its error is meant for the client, as is that of check.
func (f field) set(v reflect.Value, values ...string) error {
	text := f.Tag.Get("default")
	switch {
	case len(values) > 1:
		return errors.New("must be given once")
	case len(values) == 1 && (values[0] != "" || f.source != "query"): // in a query, empty counts as not given
		text = values[0]
	case text == "":
		return nil
	}
	switch to := v.Addr().Interface().(type) {
	case **Instant:
		*to = new(Instant)
		return (*to).UnmarshalText([]byte(text))
	case *bool:
		if *to = text == "true"; !*to && text != "false" {
			return errors.New("must be true or false")
		}
	case *int64: // what is none stays 0, which no number here may be
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			*to = n
		}
	case *string:
		*to = text
	}
	return f.check(v)
}

// check finds what is wrong with a value. One that is missing is 0 or empty, which the limits of a required one exclude.
func (f field) check(v reflect.Value) error {
	text := v.String()
	length := int64(utf8.RuneCountInString(text))
	switch {
	case v.Kind() == reflect.Int64 && (v.Int() < f.min || v.Int() > f.max):
		return fmt.Errorf("must be an integer from %d to %d", f.min, f.max)
	case f.maxAhead > 0 && !v.IsNil() && time.Until(time.Time(*v.Interface().(*Instant))) > f.maxAhead:
		return fmt.Errorf("must not be more than %.0f minutes in the future", f.maxAhead.Minutes())
	case v.Kind() != reflect.String:
		return nil
	case length < f.min:
		return errors.New("must not be empty")
	case length > f.max:
		return fmt.Errorf("must be at most %d characters long", f.max)
	case strings.ContainsRune(text, 0) || !utf8.ValidString(text):
		return errors.New("must be UTF-8 without the character NUL")
	case !f.pattern.MatchString(text):
		return errors.New("is not of the form that /docs/ describes")
	case len(f.enum) > 0 && !slices.Contains(f.enum, text):
		return fmt.Errorf("must be one of %s", strings.Join(f.enum, ", "))
	}
	return nil
}

// soundEscape matches every escape of a JSON string but half a surrogate pair, which encoding/json would replace in silence.
var soundEscape = regexp.MustCompile(`\\(?:[^u]|u[^dD]...|u[dD][0-7]..|u[dD][89abAB]..\\u[dD][c-fC-F]..)`)

func decodeBody(r *http.Request, in any) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return refuse(415, "The body must be application/json.")
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case tooLarge:
		return refuse(413, "The body must be at most 128 KiB.")
	case err != nil:
		return refuse(400, "The body did not arrive whole.")
	case !utf8.Valid(body), strings.Contains(soundEscape.ReplaceAllString(string(body), ""), `\u`):
		return refuse(400, "The body must be UTF-8, and no escape in it half of a surrogate pair.")
	}
	decoder := json.NewDecoder(strings.NewReader(string(body)))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(in)
	if wrongType, ok := errors.AsType[*json.UnmarshalTypeError](err); ok { // its own text names Go types
		name := wrongType.Field[strings.LastIndexByte(wrongType.Field, '.')+1:]
		return refuse(400, "The body has a value of a wrong type.").add(400, cmp.Or(name, "body"), errors.New("must not be of the type "+wrongType.Value))
	}
	if err != nil {
		return refuse(400, "The body cannot be read: "+strings.TrimPrefix(err.Error(), "json: ")+".")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return refuse(400, "The body must end after its one object.")
	}
	return nil
}
