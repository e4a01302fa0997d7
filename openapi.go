package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/swaggest/openapi-go"
	"github.com/swaggest/openapi-go/openapi31"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"
)

// newDocument describes the operations in OpenAPI 3.1.
func newDocument(all []operation) (json.RawMessage, error) {
	r := openapi31.NewReflector()
	r.Spec.Info.WithTitle("Patient interactions").WithVersion("1.0.0").
		WithDescription("Document interactions with patients and their outcome, read a history, find a patient.")
	//lint:ignore SA1019 its successor would need a fifth dependency
	r.InterceptDefName(func(t reflect.Type, _ string) string {
		outer, inner, generic := strings.Cut(strings.TrimSuffix(t.Name(), "]"), "[")
		if !generic {
			return outer
		}
		return inner[strings.LastIndexByte(inner, '.')+1:] + outer // Page[main.Patient]: PatientPage
	})
	for _, op := range all {
		oc, err := r.NewOperationContext(op.method, op.path)
		if err != nil {
			return nil, fmt.Errorf("describe %s: %w", op.id, err)
		}
		oc.SetID(op.id)
		oc.SetTags(op.tag)
		oc.SetSummary(op.summary)
		oc.SetDescription(op.description)
		oc.AddReqStructure(op.endpoint.in)
		oc.AddRespStructure(op.endpoint.out, openapi.WithHTTPStatus(op.answers[0]))
		oc.AddRespStructure(Problem{}, openapi.WithHTTPStatus(4), openapi.WithContentType("application/problem+json"))
		if err := r.AddOperation(oc); err != nil {
			return nil, fmt.Errorf("describe %s: %w", op.id, err)
		}
	}
	return r.Spec.MarshalJSON()
}

// swaggerUI serves the document's page from the binary itself.
func swaggerUI() http.Handler {
	page := v5emb.NewWithConfig(swgui.Config{SettingsUI: map[string]string{"tryItOutEnabled": "true"}})("Patient interactions", "/openapi.json", "/docs/")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'")
		page.ServeHTTP(w, r)
	})
}
