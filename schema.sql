-- The tables, and every rule that must hold whoever writes. PostgreSQL 15 or newer, UTF-8, built with ICU.
-- Load it once, whole or not at all:  psql --single-transaction -v ON_ERROR_STOP=1 -f schema.sql

CREATE EXTENSION IF NOT EXISTS pg_trgm;

CREATE TYPE outcome       AS ENUM ('healthy', 'unhealthy', 'entered_in_error');
CREATE TYPE health_status AS ENUM ('healthy', 'unhealthy', 'unknown');

-- Names sort and fold their case by Unicode's root collation, whatever the locale of the database.
CREATE TABLE doctors (
    id        bigint GENERATED ALWAYS AS IDENTITY,
    name      text COLLATE "und-x-icu" NOT NULL CONSTRAINT doctor_name_not_blank CHECK (name ~ '\S'),
    specialty text NOT NULL CONSTRAINT doctor_specialty_not_blank CHECK (specialty ~ '\S'),
    PRIMARY KEY (id) INCLUDE (name) -- a page of interactions reads the names from it alone
);

-- health_status and last_interaction_at are derived from interactions by a trigger, below; nothing else should set them.
CREATE TABLE patients (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                text COLLATE "und-x-icu" NOT NULL CONSTRAINT patient_name_not_blank CHECK (name ~ '\S'),
    birth_date          date NOT NULL CONSTRAINT birth_date_has_four_digit_year CHECK (birth_date BETWEEN '0001-01-01' AND '9999-12-31'),
    health_status       health_status NOT NULL DEFAULT 'unknown',
    last_interaction_at timestamptz,
    CONSTRAINT unknown_without_interaction CHECK ((health_status = 'unknown') = (last_interaction_at IS NULL))
) WITH (fillfactor = 70); -- room on each page, so that most updates by the trigger touch no index

-- Keys start with patient_id, so that an amendment cannot cross patients and one patient's rows can live on one shard.
CREATE TABLE interactions (
    id              bigint GENERATED ALWAYS AS IDENTITY,
    patient_id      bigint NOT NULL CONSTRAINT interactions_patient REFERENCES patients,
    doctor_id       bigint NOT NULL CONSTRAINT interactions_doctor REFERENCES doctors,
    occurred_at     timestamptz NOT NULL CONSTRAINT occurred_at_has_four_digit_year CHECK (occurred_at BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    outcome         outcome NOT NULL,
    notes           text NOT NULL CONSTRAINT notes_length CHECK (char_length(notes) BETWEEN 1 AND 10000)
                                  CONSTRAINT notes_trimmed CHECK (notes = btrim(notes, E' \t\n\x0B\f\r')),
    amends          bigint CONSTRAINT amends_an_earlier_entry CHECK (amends < id),
    idempotency_key text CONSTRAINT idempotency_key_visible_ascii CHECK (idempotency_key ~ '^[!-~]{1,255}$'),
    PRIMARY KEY (patient_id, id) INCLUDE (occurred_at), -- a cursor's place is read from it alone
    CONSTRAINT interactions_amends FOREIGN KEY (patient_id, amends) REFERENCES interactions (patient_id, id),
    CONSTRAINT only_an_amendment_strikes_out CHECK (outcome <> 'entered_in_error' OR amends IS NOT NULL)
);

-- One amendment an entry, one entry a retry key. Partial, so that an ordinary write pays for neither.
CREATE UNIQUE INDEX interactions_amended_once    ON interactions (patient_id, amends) WHERE amends IS NOT NULL;
CREATE UNIQUE INDEX interactions_idempotency_key ON interactions (patient_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- The history of a patient, newest first, with all that a timeline needs; the patients of a doctor; patients and doctors
-- by name.
CREATE INDEX interactions_history      ON interactions (patient_id, occurred_at DESC, id DESC) INCLUDE (outcome);
CREATE INDEX interactions_by_doctor    ON interactions (doctor_id, patient_id);
CREATE INDEX doctors_by_name           ON doctors (name, id);
CREATE INDEX patients_by_name          ON patients (name, id);
CREATE INDEX patients_by_health_status ON patients (health_status, name, id);
CREATE INDEX patients_by_part_of_name  ON patients USING gin (lower(name) gin_trgm_ops);

-- Nothing documented is ever changed or deleted.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'interactions are append-only: record an amendment instead' USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER interactions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON interactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The patient's present state follows the current entries. Under READ COMMITTED a statement sees what was committed
-- before it began, so the row is locked first and a later statement reads. The row is updated even if nothing changes:
-- a concurrent REPEATABLE READ writer then fails instead of deciding from an old snapshot.
CREATE FUNCTION refresh_health_status() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    latest record;
BEGIN
    PERFORM id FROM patients WHERE id = NEW.patient_id FOR NO KEY UPDATE;

    SELECT   i.outcome, i.occurred_at
    INTO     latest
    FROM     interactions i
    WHERE    i.patient_id = NEW.patient_id
      AND    i.outcome <> 'entered_in_error'
      AND    NOT EXISTS (SELECT 1 FROM interactions a WHERE a.patient_id = i.patient_id AND a.amends = i.id)
    ORDER BY i.occurred_at DESC, i.id DESC
    LIMIT    1;

    UPDATE patients
    SET    health_status       = coalesce(latest.outcome::text, 'unknown')::health_status,
           last_interaction_at = latest.occurred_at
    WHERE  id = NEW.patient_id;
    RETURN NULL;
END $$;

CREATE TRIGGER interactions_refresh_health_status AFTER INSERT ON interactions
    FOR EACH ROW EXECUTE FUNCTION refresh_health_status();

-- ALWAYS: session_replication_role does not silence them.
ALTER TABLE interactions ENABLE ALWAYS TRIGGER interactions_append_only;
ALTER TABLE interactions ENABLE ALWAYS TRIGGER interactions_refresh_health_status;

-- The service's role owns nothing: it reads, and inserts the columns that a request carries. A login role is made a
-- member of it, or takes it on by role=patient_interactions in the connection string.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'patient_interactions') THEN
        CREATE ROLE patient_interactions NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN -- roles are the server's: another database may be making it now
END $$;
GRANT SELECT ON doctors, patients, interactions TO patient_interactions;
GRANT INSERT (patient_id, doctor_id, occurred_at, outcome, notes, amends, idempotency_key) ON interactions TO patient_interactions;
