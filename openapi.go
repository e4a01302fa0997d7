package main

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/swaggest/openapi-go"
	"github.com/swaggest/openapi-go/openapi31"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"
)

const intro = `A doctor documents interactions with patients and each one's outcome, sees a patient's whole history, and finds any patient by the present state.

Open these operations and press *Execute*; nothing needs editing. **See a patient's present state** tells that patient 1, Clara Wendelhorst, is unhealthy. **Document an interaction** finds her healthy. The first, executed again, agrees, and **Read a patient's history** shows why.

Nothing is ever changed or deleted: an amendment replaces an entry, which stays readable. Every answer carries an ` + "`X-Request-Id`" + `, which the service's log names too.`

// problems says what each refusal means. Every operation may answer with one of the last, 4XX.
var problems = map[int]string{
	404: "There is no such patient or interaction.",
	409: "The interaction is already amended by another, which the detail names: amend that one instead.",
	422: "The body can be read but not accepted: errors names every fault of it.",
	503: "The database cannot be reached, the patient's record stays locked, the time limit of 4 seconds ran out, or too many large pages are on their way. Repeat the request, with the same Idempotency-Key if it writes.",
	4:   "What cannot be read (400), a write from another web page (403), an unknown path (404), a method that the path does not take (405), a body too large (413) or not application/json (415).",
}

// headers says what an answer carries beside its body.
var headers = map[string]map[string]openapi31.HeaderOrReference{
	"201": {"Location": {Header: &openapi31.Header{Description: new("The path of the new entry."), Schema: map[string]any{"type": "string"}}}},
	"503": {"Retry-After": {Header: &openapi31.Header{Description: new("Seconds to wait."), Schema: map[string]any{"type": "integer"}}}},
}

// examples are the bodies that Swagger UI sends if nothing is edited.
var examples = map[string]any{
	"documentInteraction": map[string]any{"doctor_id": 2, "outcome": "healthy", "notes": "No palpitations since the last visit. ECG: sinus rhythm, 68/min. Bisoprolol continued."},
	"amendInteraction":    map[string]any{"doctor_id": 1, "outcome": "healthy", "notes": "New patient, registration check-up. No complaints. BP 138/82 mmHg, not 128/82 as first written."},
}

// newDocument describes the operations in OpenAPI 3.1. It panics where the table contradicts itself, which the first start
// shows.
func newDocument(all []operation) json.RawMessage {
	r := openapi31.NewReflector()
	r.Spec.Info.WithTitle("Patient interactions").WithVersion("1.0.0").WithDescription(intro).WithContact(openapi31.Contact{Name: new("The authors of patient-interactions")}).
		WithLicense(openapi31.License{Name: "MIT", Identifier: new("MIT")})
	r.Spec.WithServers(openapi31.Server{URL: "/"}).WithSecurity(map[string][]string{}) // none: what stands in front of the service authenticates
	r.Spec.WithTags(openapi31.Tag{Name: "patients", Description: new("Find a patient, see the present state and the health over time.")},
		openapi31.Tag{Name: "interactions", Description: new("Document what was found, read the history, put an entry right.")},
		openapi31.Tag{Name: "doctors", Description: new("Who documents.")},
		openapi31.Tag{Name: "service", Description: new("For operators and clients.")})
	r.AddTypeMapping(Instant{}, time.Time{})                               // a string in the format date-time
	packages := strings.NewReplacer("PatientInteractions", "", "Main", "") // PageOfMainPatient: PageOfPatient
	//lint:ignore SA1019 its successor would need a fifth dependency
	r.InterceptDefName(func(_ reflect.Type, name string) string { return packages.Replace(name) })
	for _, op := range all {
		describe(r, op)
	}
	document, err := r.Spec.MarshalJSON()
	check("document", err)
	return document
}

func check(what string, err error) {
	if err != nil {
		panic(what + ": " + err.Error())
	}
}

func describe(r *openapi31.Reflector, op operation) {
	oc, err := r.NewOperationContext(op.method, op.path)
	check(op.id, err)
	o := oc.(openapi31.OperationExposer).Operation().WithID(op.id).WithTags(op.tag).WithSummary(op.summary).WithDescription(op.description)
	oc.AddReqStructure(op.endpoint.in)
	oc.AddRespStructure(op.endpoint.out, openapi.WithHTTPStatus(op.answers[0]))
	for _, status := range append(op.answers[1:], 4) { // 4 stands for 4XX
		oc.AddRespStructure(Problem{}, func(c *openapi.ContentUnit) {
			c.HTTPStatus, c.ContentType, c.Description = status, "application/problem+json", problems[status]
		})
	}
	check(op.id, r.AddOperation(oc))
	// What cannot be reflected, where clients and Swagger UI look for it.
	// By the length of their kind, which is the order path, query, header.
	slices.SortStableFunc(o.Parameters, func(a, b openapi31.ParameterOrReference) int { return len(a.Parameter.In) - len(b.Parameter.In) })
	for _, p := range o.Parameters {
		if examples, ok := p.Parameter.Schema["examples"].([]any); ok {
			p.Parameter.Example = &examples[0]
		}
	}
	if o.RequestBody != nil {
		body := o.RequestBody.RequestBody.WithRequired(true)
		body.Content["application/json"] = openapi31.MediaType{Schema: body.Content["application/json"].Schema, Example: new(examples[op.id])}
	}
	for status, answer := range o.Responses.MapOfResponseOrReferenceValues {
		answer.Response.Headers = headers[status]
		if code, _ := strconv.Atoi(status); code >= 400 {
			answer.Response.Content["application/problem+json"] = openapi31.MediaType{Schema: answer.Response.Content["application/problem+json"].Schema,
				Example: new(any(Problem{Type: "about:blank", Title: http.StatusText(code), Status: code, Detail: problems[code], Errors: map[int][]FieldError{422: {{"notes", "must not be empty"}}}[code]}))}
		}
	}
}

// pagePolicy lets the page of Swagger UI load what this service serves, and run the two scripts and two styles inside of
// it that have these hashes. They change with swgui's version and settings; a test compares them.
const pagePolicy = "default-src 'none'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"script-src 'self' 'sha256-f8nHtu9VNwE6XLrjOLLtgQlwWIn4+lHqAAPNFnZmaPU=' 'sha256-76NQo4Y81w6DaChmMj05hKNQFeYEk72iKfijpjLzwxk='; " +
	"style-src 'self' 'sha256-/9bMfF7o2bA8s86mVvZMwDxEGY8erDaTuv17nSCkaUc=' 'sha256-NtcQ/yK/k2xXK/IBVMVmyRijJYGXUnuP33KsKuc0UPs='"

// swaggerUI serves the document's page from the binary itself, without the box to choose a server, for there is one.
func swaggerUI() http.Handler {
	page := v5emb.NewWithConfig(swgui.Config{
		SettingsUI: map[string]string{"tryItOutEnabled": "true"},
		AppendHead: "<style>.swagger-ui .scheme-container { display: none }</style>",
	})("Patient interactions", "/openapi.json", "/docs/")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", pagePolicy)
		page.ServeHTTP(w, r)
	})
}
