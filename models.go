package main

import (
	"fmt"
	"net/http"
	"time"
)

// Doctor documents interactions.
type Doctor struct {
	ID        int64  `json:"id" required:"true" example:"1"`
	Name      string `json:"name" required:"true" example:"Dr. Hanne Brookfeldt"`
	Specialty string `json:"specialty" required:"true" example:"General practice"`
}

// Patient is a patient with the current health status.
type Patient struct {
	ID        int64  `json:"id" required:"true" example:"1"`
	Name      string `json:"name" required:"true" example:"Clara Wendelhorst"`
	BirthDate string `json:"birth_date" required:"true" format:"date" example:"1958-03-14"`

	// HealthStatus is the outcome of the current interaction that occurred last, or "unknown" if there is none.
	HealthStatus string `json:"health_status" required:"true" enum:"healthy,unhealthy,unknown" example:"unhealthy"`

	// LastInteractionAt is when the interaction that determines HealthStatus occurred, or nil if there is none.
	LastInteractionAt *time.Time `json:"last_interaction_at" required:"true" example:"2026-09-22T13:10:00Z"`
}

// DoctorReference is the doctor who documented an interaction.
type DoctorReference struct {
	ID   int64  `json:"id" required:"true" example:"1"`
	Name string `json:"name" required:"true" example:"Dr. Hanne Brookfeldt"`
}

// Interaction is one documented contact between a doctor and a patient. It never changes: an amendment replaces it.
type Interaction struct {
	ID         int64           `json:"id" required:"true" example:"1"`
	PatientID  int64           `json:"patient_id" required:"true" example:"1"`
	Doctor     DoctorReference `json:"doctor" required:"true"`
	OccurredAt time.Time       `json:"occurred_at" required:"true" example:"2019-01-15T09:10:00Z"`
	RecordedAt time.Time       `json:"recorded_at" required:"true" example:"2019-01-15T09:27:00Z"`
	Outcome    string          `json:"outcome" required:"true" enum:"healthy,unhealthy,entered_in_error"`
	Notes      string          `json:"notes" required:"true" example:"Check-up without complaints. BP 128/82 mmHg."`

	// Amends is the id of the interaction that this one replaces, and AmendedBy that of the one that replaces it.
	Amends    *int64 `json:"amends" required:"true" format:"int64" examples:"[null]"`
	AmendedBy *int64 `json:"amended_by" required:"true" format:"int64" examples:"[null]"`
}

// Period is a time during which consecutive current interactions had the same outcome.
type Period struct {
	Outcome      string     `json:"outcome" required:"true" enum:"healthy,unhealthy"`
	From         time.Time  `json:"from" required:"true" example:"2019-01-15T09:10:00Z"`
	To           *time.Time `json:"to" required:"true" example:"2019-11-19T08:25:00Z"` // nil while it lasts
	Interactions int64      `json:"interactions" required:"true" minimum:"1" example:"1"`
}

// Timeline is a patient's health over time, oldest period first.
type Timeline struct {
	HealthStatus string   `json:"health_status" required:"true" enum:"healthy,unhealthy,unknown"`
	Items        []Period `json:"items" required:"true" nullable:"false"`
}

// Page is a part of a list. NextCursor is nil on the last page.
type Page[T any] struct {
	Items      []T     `json:"items" required:"true" nullable:"false"`
	NextCursor *string `json:"next_cursor" required:"true" examples:"[null]"`
}

// Health is the answer of /livez and /readyz.
type Health struct {
	Status string `json:"status" required:"true" enum:"ok"`
}

// FieldError says what is wrong with one field of a request.
type FieldError struct {
	Field  string `json:"field" required:"true" example:"notes"`
	Detail string `json:"detail" required:"true" example:"must not be empty"`
}

// Problem is an error that the client is told about, as RFC 9457 defines it.
type Problem struct {
	Type   string       `json:"type" required:"true" format:"uri-reference" example:"about:blank"`
	Title  string       `json:"title" required:"true" example:"Unprocessable Entity"`
	Status int          `json:"status" required:"true" minimum:"400" maximum:"599" example:"422"`
	Detail string       `json:"detail" required:"true" example:"Validation failed; see errors."`
	Errors []FieldError `json:"errors,omitempty"`

	cause error // for the log only, or nil
}

func newProblem(status int, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

func validationProblem(faults ...FieldError) *Problem {
	p := newProblem(http.StatusUnprocessableEntity, "Validation failed; see errors.")
	p.Errors = faults
	return p
}

// Error returns the detail, with the cause if there is one. It is meant for the log.
func (p *Problem) Error() string {
	if p.cause == nil {
		return p.Detail
	}
	return fmt.Sprintf("%s: %v", p.Detail, p.cause)
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error {
	return p.cause
}

// The types below are the inputs of operations. Their tags say where a field comes from and what it may contain.
// decode checks that, and the OpenAPI document shows it, except that trim and maxAhead are for decode only, and
// example, nullable and additionalProperties for the document only. A field with its zero value was not given. The
// description of a field with a pattern also completes the error "must be …".

// Paging selects a page of a list.
type Paging struct {
	Limit  int64  `query:"limit" minimum:"1" maximum:"100" default:"50" description:"maximum number of items"`
	Cursor string `query:"cursor" pattern:"^[1-9][0-9]{0,17}$" description:"the next_cursor of the previous page"`
}

// PatientFilter selects patients. All filters that are given must match.
type PatientFilter struct {
	Search       string `query:"search" maxLength:"100" description:"words that the name contains"`
	HealthStatus string `query:"health_status" enum:"healthy,unhealthy,unknown" description:"current health status"`
	DoctorID     int64  `query:"doctor_id" minimum:"1" description:"id of the doctor of a current interaction"`
	Paging
}

// PatientPath identifies a patient.
type PatientPath struct {
	PatientID int64 `path:"patient_id" minimum:"1" example:"1" description:"id of the patient"`
}

// InteractionPath identifies an interaction of a patient.
type InteractionPath struct {
	PatientPath
	InteractionID int64 `path:"interaction_id" minimum:"1" example:"1" description:"id of the interaction"`
}

// InteractionFilter selects interactions of a patient. All filters that are given must match.
type InteractionFilter struct {
	PatientPath
	Outcome        string     `query:"outcome" enum:"healthy,unhealthy,entered_in_error" description:"outcome found"`
	DoctorID       int64      `query:"doctor_id" minimum:"1" description:"id of the doctor"`
	From           *time.Time `query:"from" nullable:"false" description:"at this time or later"`
	To             *time.Time `query:"to" nullable:"false" description:"before this time"`
	IncludeAmended bool       `query:"include_amended" default:"false" description:"also those that are not current"`
	Paging
}

// IdempotencyKey identifies a request, so that it can be repeated.
type IdempotencyKey struct {
	Key string `header:"Idempotency-Key" pattern:"^[!-~]{1,255}$" description:"1 to 255 visible ASCII characters"`
}

// NewInteraction is an interaction to document. A nil OccurredAt means now.
type NewInteraction struct {
	PatientPath
	IdempotencyKey
	DoctorID   int64      `json:"doctor_id" required:"true" minimum:"1"`
	Outcome    string     `json:"outcome" required:"true" enum:"healthy,unhealthy"`
	Notes      string     `json:"notes" required:"true" minLength:"1" maxLength:"10000" trim:"true"`
	OccurredAt *time.Time `json:"occurred_at,omitempty" nullable:"false" maxAhead:"5m"`
	_          struct{}   `additionalProperties:"false"`
}

// NewAmendment is an interaction that replaces another one. A nil OccurredAt means the time of the replaced one.
type NewAmendment struct {
	InteractionPath
	IdempotencyKey
	DoctorID   int64      `json:"doctor_id" required:"true" minimum:"1"`
	Outcome    string     `json:"outcome" required:"true" enum:"healthy,unhealthy,entered_in_error"`
	Notes      string     `json:"notes" required:"true" minLength:"1" maxLength:"10000" trim:"true"`
	OccurredAt *time.Time `json:"occurred_at,omitempty" nullable:"false" maxAhead:"5m"`
	_          struct{}   `additionalProperties:"false"`
}
