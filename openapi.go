package main

import (
	"cmp"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/swaggest/openapi-go"
	"github.com/swaggest/openapi-go/openapi31"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"
)

const intro = `A doctor documents interactions with patients and each one's outcome, sees a patient's whole ` +
	`history, and finds patients by their current health status.

Open these operations and press *Execute*; nothing needs editing. **See a patient's health status** shows that ` +
	`patient 1 is unhealthy. **Document an interaction** finds her healthy. Execute the first one again to see the ` +
	`change, and **Read a patient's history** to see why.

Nothing is ever changed or deleted: an amendment replaces an interaction, which stays readable. Every response has ` +
	"an `X-Request-Id`, which is in the log of the service too."

// anyClientError is how openapi-go is told the status 4XX.
const anyClientError = 4

// problemDescriptions says what the errors of operations mean.
var problemDescriptions = map[int]string{
	http.StatusNotFound:            "There is no such patient or interaction.",
	http.StatusConflict:            "The interaction is already amended. The detail names the amendment.",
	http.StatusUnprocessableEntity: "Validation failed; see errors.",
	http.StatusServiceUnavailable: "The database does not answer, the patient's record stays locked, or the answer " +
		"takes longer than 4 seconds. Repeat the request, with its Idempotency-Key if it has one.",
	anyClientError: "The request is malformed (400), from another web site (403), too large (413), or not " +
		"application/json (415).",
}

// newDocument returns the OpenAPI document of the operations as JSON. It panics if an operation cannot be described.
func newDocument(operations []operation) []byte {
	r := openapi31.NewReflector()
	r.Spec.Info.WithTitle("Patient interactions").WithVersion("1.0.0").WithDescription(intro)
	r.Spec.Info.WithContact(openapi31.Contact{Name: new("The authors of patient-interactions")})
	r.Spec.Info.WithLicense(openapi31.License{Name: "MIT", Identifier: new("MIT")})
	r.Spec.WithServers(openapi31.Server{URL: "/"})
	r.Spec.WithSecurity(map[string][]string{}) // no authentication
	r.Spec.WithTags(
		openapi31.Tag{Name: "patients", Description: new("Find patients and see their health.")},
		openapi31.Tag{Name: "interactions", Description: new("Document interactions, read the history, and amend it.")},
		openapi31.Tag{Name: "doctors", Description: new("Who documents interactions.")},
		openapi31.Tag{Name: "service", Description: new("For operators.")},
	)
	//lint:ignore SA1019 its successor needs another dependency
	r.InterceptDefName(func(t reflect.Type, _ string) string { return schemaName(t) })

	for _, op := range operations {
		if err := addOperation(r, op); err != nil {
			panic(fmt.Sprintf("describe %s: %v", op.id, err))
		}
	}
	document, err := r.Spec.MarshalJSON()
	if err != nil {
		panic(fmt.Sprintf("encode the OpenAPI document: %v", err))
	}
	return document
}

// schemaName returns the name of a type, and PatientPage for Page[main.Patient].
func schemaName(t reflect.Type) string {
	outer, inner, isGeneric := strings.Cut(strings.TrimSuffix(t.Name(), "]"), "[")
	if !isGeneric {
		return outer
	}
	return inner[strings.LastIndexByte(inner, '.')+1:] + outer
}

func addOperation(r *openapi31.Reflector, op operation) error {
	oc, err := r.NewOperationContext(op.method, op.path)
	if err != nil {
		return err
	}
	oc.SetID(op.id)
	oc.SetTags(op.tag)
	oc.SetSummary(op.summary)
	oc.SetDescription(op.description)
	oc.AddReqStructure(op.endpoint.input)
	oc.AddRespStructure(op.endpoint.output, openapi.WithHTTPStatus(op.endpoint.status))
	for _, status := range slices.Concat(op.problems, []int{anyClientError}) {
		addProblem(oc, status)
	}
	if err := r.AddOperation(oc); err != nil {
		return err
	}

	// What cannot be said with tags is added afterwards.
	described := oc.(openapi31.OperationExposer).Operation()
	arrangeParameters(described.Parameters)
	if described.RequestBody != nil {
		described.RequestBody.RequestBody.WithRequired(true)
		setExample(described.RequestBody.RequestBody.Content, "application/json", op.example)
	}
	if op.endpoint.status == http.StatusCreated {
		created := described.Responses.MapOfResponseOrReferenceValues[strconv.Itoa(http.StatusCreated)]
		setHeader(created.Response, "Location", "string", "path of the new interaction")
	}
	return nil
}

func addProblem(oc openapi.OperationContext, status int) {
	customize := func(content openapi.ContentOrReference) {
		response := content.(*openapi31.ResponseOrReference).Response
		response.Description = problemDescriptions[status]
		setExample(response.Content, "application/problem+json", exampleProblem(status))
		if status == http.StatusServiceUnavailable {
			setHeader(response, "Retry-After", "integer", "seconds to wait")
		}
	}
	oc.AddRespStructure(
		Problem{},
		openapi.WithHTTPStatus(status),
		openapi.WithContentType("application/problem+json"),
		openapi.WithCustomize(customize),
	)
}

func exampleProblem(status int) *Problem {
	switch status {
	case anyClientError:
		return newProblem(http.StatusBadRequest, "The query string must be UTF-8.")
	case http.StatusUnprocessableEntity:
		return validationProblem(FieldError{"notes", "must not be empty"})
	default:
		return newProblem(status, problemDescriptions[status])
	}
}

// arrangeParameters orders parameters by their place: path, query, header. In their schemas it deletes the
// description, which is a copy, and the example, which it moves to where Swagger UI looks for it.
func arrangeParameters(parameters []openapi31.ParameterOrReference) {
	places := []openapi31.ParameterIn{
		openapi31.ParameterInPath,
		openapi31.ParameterInQuery,
		openapi31.ParameterInHeader,
	}
	slices.SortStableFunc(parameters, func(a, b openapi31.ParameterOrReference) int {
		return cmp.Compare(slices.Index(places, a.Parameter.In), slices.Index(places, b.Parameter.In))
	})
	for _, p := range parameters {
		delete(p.Parameter.Schema, "description")
		if examples, ok := p.Parameter.Schema["examples"].([]any); ok {
			p.Parameter.Example = &examples[0]
			delete(p.Parameter.Schema, "examples")
		}
	}
}

func setExample(content map[string]openapi31.MediaType, contentType string, example any) {
	mediaType := content[contentType]
	mediaType.Example = &example
	content[contentType] = mediaType
}

func setHeader(response *openapi31.Response, name, jsonType, description string) {
	header := openapi31.Header{Description: &description, Schema: map[string]any{"type": jsonType}}
	response.WithHeadersItem(name, openapi31.HeaderOrReference{Header: &header})
}

// pagePolicy is the Content-Security-Policy of the Swagger UI page. It allows what this service serves, and the inline
// scripts and styles of the page by their hashes. A test compares them with the page.
const pagePolicy = "default-src 'none'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"script-src 'self' 'sha256-f8nHtu9VNwE6XLrjOLLtgQlwWIn4+lHqAAPNFnZmaPU=' " +
	"'sha256-76NQo4Y81w6DaChmMj05hKNQFeYEk72iKfijpjLzwxk='; " +
	"style-src 'self' 'sha256-/9bMfF7o2bA8s86mVvZMwDxEGY8erDaTuv17nSCkaUc=' " +
	"'sha256-NtcQ/yK/k2xXK/IBVMVmyRijJYGXUnuP33KsKuc0UPs='"

// swaggerUI returns the handler of /docs/, the page that shows the document. All that the page loads is in the binary.
func swaggerUI() http.Handler {
	page := v5emb.NewWithConfig(swgui.Config{
		SettingsUI: map[string]string{"tryItOutEnabled": "true"},
		// There is only one server, so there is nothing to choose.
		AppendHead: "<style>.swagger-ui .scheme-container { display: none }</style>",
	})("Patient interactions", "/openapi.json", "/docs/")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", pagePolicy)
		page.ServeHTTP(w, r)
	})
}
