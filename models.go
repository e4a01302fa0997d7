package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Doctor is who documents.
type Doctor struct {
	ID        int64  `json:"id" required:"true" example:"1"`
	Name      string `json:"name" required:"true" example:"Dr. Hanne Brookfeldt"`
	Specialty string `json:"specialty" required:"true" example:"General practice"`
}

// Patient is whom an interaction is about, with the present state.
type Patient struct {
	ID                int64    `json:"id" required:"true" example:"1"`
	Name              string   `json:"name" required:"true" example:"Clara Wendelhorst"`
	BirthDate         string   `json:"birth_date" required:"true" format:"date" example:"1958-03-14"`
	HealthStatus      string   `json:"health_status" required:"true" enum:"healthy,unhealthy,unknown" description:"The outcome of the latest current interaction; unknown where there is none." example:"unhealthy"`
	LastInteractionAt *Instant `json:"last_interaction_at" required:"true" description:"When the interaction that gives the health status occurred; null while it is unknown." example:"2026-09-22T13:10:00Z"`
}

// DoctorReference names the doctor of an interaction.
type DoctorReference struct {
	ID   int64  `json:"id" required:"true" example:"1"`
	Name string `json:"name" required:"true" example:"Dr. Hanne Brookfeldt"`
}

// Interaction is one documented contact between a doctor and a patient. It is never changed: an amendment replaces it.
type Interaction struct {
	ID         int64           `json:"id" required:"true" example:"1"`
	PatientID  int64           `json:"patient_id" required:"true" example:"1"`
	Doctor     DoctorReference `json:"doctor" required:"true"`
	OccurredAt Instant         `json:"occurred_at" required:"true" description:"When the doctor saw the patient." example:"2019-01-15T09:10:00Z"`
	RecordedAt Instant         `json:"recorded_at" required:"true" description:"When the entry was written." example:"2019-01-15T09:27:00Z"`
	Outcome    string          `json:"outcome" required:"true" enum:"healthy,unhealthy,entered_in_error" description:"What the doctor found; entered_in_error strikes the amended entry from the record."`
	Notes      string          `json:"notes" required:"true" example:"New patient, registration check-up. No complaints."`
	Amends     *int64          `json:"amends" required:"true" format:"int64" description:"The earlier entry that this one replaces, or null." examples:"[null]"`
	AmendedBy  *int64          `json:"amended_by" required:"true" format:"int64" description:"The later entry that replaced this one, or null." examples:"[null]"`
}

// Period is a time in which consecutive current interactions had one outcome.
type Period struct {
	Outcome      string   `json:"outcome" required:"true" enum:"healthy,unhealthy"`
	From         Instant  `json:"from" required:"true" example:"2019-01-15T09:10:00Z"`
	To           *Instant `json:"to" required:"true" description:"Where the next period begins; null while this one lasts." example:"2019-11-19T08:25:00Z"`
	Interactions int64    `json:"interactions" required:"true" minimum:"1" description:"How many current interactions the period holds." example:"1"`
}

// Timeline is a patient's health over time, oldest period first.
type Timeline struct {
	HealthStatus string   `json:"health_status" required:"true" enum:"healthy,unhealthy,unknown" description:"The present state."`
	Items        []Period `json:"items" required:"true" nullable:"false"`
}

// Probe is what a probe of the service answers when all is well.
type Probe struct {
	Status string `json:"status" required:"true" enum:"ok"`
}

// PageOf is a part of a list. NextCursor is nil on the last page.
type PageOf[T any] struct {
	Items      []T     `json:"items" required:"true" nullable:"false"`
	NextCursor *string `json:"next_cursor" required:"true" description:"The cursor of the next page; null on the last one." examples:"[null]"`
}

// Instant is a time to the microsecond, which is what PostgreSQL keeps.
type Instant time.Time

// Compare is negative where i is before j.
func (i Instant) Compare(j Instant) int { return time.Time(i).Compare(time.Time(j)) }

// MarshalText gives RFC 3339 in UTC. What time.Time's own MarshalJSON gives, encoding/json would read once more.
func (i Instant) MarshalText() ([]byte, error) { return time.Time(i).UTC().MarshalText() }

// UnmarshalText takes RFC 3339 with any offset, and cuts what is finer.
func (i *Instant) UnmarshalText(text []byte) error {
	at, err := time.Parse(time.RFC3339, string(text))
	if err != nil {
		return errors.New("a time has a date, a time of day and an offset, such as 2024-05-13T09:30:00Z (+ is %2B in a URL)")
	}
	*i = Instant(at.Truncate(time.Microsecond))
	return nil
}

// Notes is text without white space around it, as Unicode defines white space.
type Notes string

// UnmarshalText trims.
func (n *Notes) UnmarshalText(text []byte) error {
	*n = Notes(strings.TrimSpace(string(text)))
	return nil
}

// The inputs of the operations. Their tags are the limits that the OpenAPI document shows and that decode checks.

// Paging selects a page of a list. To clients a cursor is opaque; it is the id of the item before the page, which tells
// nothing about that item.
type Paging struct {
	Limit  int64  `query:"limit" minimum:"1" maximum:"1000" default:"50" description:"How many items the page holds at the most."`
	Cursor string `query:"cursor" pattern:"^[1-9][0-9]{0,18}$" description:"The next_cursor of the page before; the first page if not given."`
}

// after returns the id in the cursor, or 0 where there is none. One beyond all ids is that of no item.
func (p Paging) after() int64 {
	id, _ := strconv.ParseInt(p.Cursor, 10, 64)
	return id
}

// PatientFilter selects patients. What is not given does not filter, here and in InteractionFilter.
type PatientFilter struct {
	Paging
	Search       string `query:"search" maxLength:"100" description:"Any part of the name, in any case. Accents count."`
	HealthStatus string `query:"health_status" enum:"healthy,unhealthy,unknown" description:"The present state."`
	DoctorID     int64  `query:"doctor_id" minimum:"1" description:"Patients whom this doctor has a current interaction with."`
}

// PatientPath addresses a patient.
type PatientPath struct {
	PatientID int64 `path:"patient_id" json:"-" minimum:"1" example:"1" description:"The patient's id."`
}

// InteractionPath addresses an interaction.
type InteractionPath struct {
	PatientPath
	InteractionID int64 `path:"interaction_id" json:"-" minimum:"1" example:"1" description:"The interaction's id."`
}

// InteractionFilter selects interactions of a patient.
type InteractionFilter struct {
	PatientPath
	Paging
	Outcome        string   `query:"outcome" enum:"healthy,unhealthy,entered_in_error" description:"What the doctor found."`
	DoctorID       int64    `query:"doctor_id" minimum:"1" description:"The doctor who documented."`
	From           *Instant `query:"from" nullable:"false" description:"The earliest occurred_at, itself included. In a URL write a plus sign as %2B."`
	To             *Instant `query:"to" nullable:"false" description:"The latest occurred_at, itself excluded."`
	IncludeAmended bool     `query:"include_amended" default:"false" description:"Show every entry ever written, not only the current ones."`
}

// Entry is what a doctor sends to document, be it an interaction or an amendment.
type Entry struct {
	IdempotencyKey string   `header:"Idempotency-Key" json:"-" minLength:"1" maxLength:"255" pattern:"^[!-~]*$" description:"A key of your choice, in visible ASCII characters. Repeating a request with its key writes nothing and answers 201 with the entry first made; an occurred_at left out counts as the same."`
	DoctorID       int64    `json:"doctor_id" required:"true" minimum:"1" description:"The doctor who documents."`
	Notes          Notes    `json:"notes" required:"true" minLength:"1" maxLength:"10000" description:"What was said, found and agreed. White space around is trimmed."`
	OccurredAt     *Instant `json:"occurred_at,omitempty" nullable:"false" maxAhead:"5m" description:"When it happened; left out, that is now, or for an amendment the instant of the amended entry. At most 5 minutes ahead, and not before the patient's birth date (midnight UTC). Kept to the microsecond."`
	_              struct{} `additionalProperties:"false"`
}

// NewInteraction documents an interaction. Without OccurredAt it happened now.
type NewInteraction struct {
	PatientPath
	Entry
	Outcome string `json:"outcome" required:"true" enum:"healthy,unhealthy" description:"What the doctor found."`
}

// NewAmendment replaces an interaction. Without OccurredAt it keeps the instant of the one that it replaces.
type NewAmendment struct {
	InteractionPath
	Entry
	Outcome string `json:"outcome" required:"true" enum:"healthy,unhealthy,entered_in_error" description:"What the doctor found; entered_in_error strikes the amended entry from the record."`
}

// FieldError says what is wrong with one field of a request.
type FieldError struct {
	Field  string `json:"field" required:"true" example:"limit"`
	Detail string `json:"detail" required:"true" example:"must be an integer from 1 to 1000"`
}

// Problem is an error as RFC 9457 has it, and as every refusal is answered. Its cause is for the log alone.
type Problem struct {
	Type   string       `json:"type" required:"true" format:"uri-reference" example:"about:blank"`
	Title  string       `json:"title" required:"true" example:"Bad Request"`
	Status int          `json:"status" required:"true" minimum:"400" maximum:"599" example:"400"`
	Detail string       `json:"detail" required:"true" description:"What is wrong, and what to do." example:"The request has faults: mend each that errors names."`
	Errors []FieldError `json:"errors,omitempty" description:"What is wrong with each field of a rejected input."`
	cause  error
}

func (p *Problem) Error() string { return fmt.Sprintf("%s: %v", p.Detail, p.cause) }

// add names what is wrong with a field, if anything is. The lowest status counts: what cannot be read, 400, before 422.
func (p *Problem) add(status int, field string, fault error) *Problem {
	if fault != nil {
		p.Status = min(p.Status, status)
		p.Errors = append(p.Errors, FieldError{field, fault.Error()})
	}
	return p
}

func refuse(status int, detail string) *Problem { return &Problem{Status: status, Detail: detail} }

// invalid awaits the faults that make it a problem.
func invalid() *Problem { return refuse(422, "The request has faults: mend each that errors names.") }
