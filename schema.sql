-- The database schema. Its constraints and triggers bind every writer, not only the service.
--
-- The database needs PostgreSQL 15 or newer with ICU, the encoding UTF-8, and a UTF-8 locale as LC_CTYPE, such as
-- C.UTF-8: without it pg_trgm indexes ASCII letters only. Load this file once, into the schema public, as an owner
-- who may create roles:
--
--     psql --single-transaction -v ON_ERROR_STOP=1 -f schema.sql "$OWNER_URL"

CREATE EXTENSION IF NOT EXISTS pg_trgm;

-- Every outcome except entered_in_error is also a health status.
CREATE TYPE outcome       AS ENUM ('healthy', 'unhealthy', 'entered_in_error');
CREATE TYPE health_status AS ENUM ('healthy', 'unhealthy', 'unknown');

-- searchable returns a text as names are searched: in lower case and without accents. Letters are decomposed, so that
-- it does not matter how they were typed, and lose the combining marks U+0300 to U+036F. Letters that have no
-- decomposition, such as ø and ł, stay. ς becomes σ, because a word may end where the name goes on.
CREATE FUNCTION searchable(value text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN translate(
        lower(regexp_replace(normalize(value, NFD), '[\u0300-\u036f]', '', 'g') COLLATE "und-x-icu"),
        'ς', 'σ'
    );

-- Names of doctors and patients are sorted by Unicode's root collation, whatever the locale of the database.
CREATE TABLE doctors (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text COLLATE "und-x-icu" NOT NULL
              CONSTRAINT doctor_name_not_blank CHECK (name ~ '\S'),
    specialty text NOT NULL
              CONSTRAINT doctor_specialty_not_blank CHECK (specialty ~ '\S')
);

-- health_status and last_interaction_at come from the current interaction that occurred last. A trigger keeps them,
-- see below; never write them directly.
CREATE TABLE patients (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                text COLLATE "und-x-icu" NOT NULL
                        CONSTRAINT patient_name_not_blank CHECK (name ~ '\S'),
    search_name         text NOT NULL GENERATED ALWAYS AS (searchable(name)) STORED,
    birth_date          date NOT NULL
                        CONSTRAINT birth_date_has_four_digit_year
                        CHECK (birth_date BETWEEN '0001-01-01' AND '9999-12-31'),
    health_status       health_status NOT NULL DEFAULT 'unknown',
    last_interaction_at timestamptz,
    CONSTRAINT unknown_has_no_last_interaction CHECK ((health_status = 'unknown') = (last_interaction_at IS NULL))
);

-- The history of all patients. Rows are never changed: a row with amends replaces that earlier row of the same
-- patient, or only withdraws it if the outcome is entered_in_error. It can itself be amended in turn.
--
-- Every key starts with patient_id, so that an amendment cannot cross patients, and so that a distributed PostgreSQL
-- can keep all rows of a patient on one node. Years have four digits, because RFC 3339 has no others.
CREATE TABLE interactions (
    id              bigint GENERATED ALWAYS AS IDENTITY,
    patient_id      bigint NOT NULL
                    CONSTRAINT interactions_patient REFERENCES patients,
    doctor_id       bigint NOT NULL
                    CONSTRAINT interactions_doctor REFERENCES doctors,
    occurred_at     timestamptz NOT NULL
                    CONSTRAINT occurred_at_has_four_digit_year
                    CHECK (occurred_at >= '0001-01-01Z' AND occurred_at < '10000-01-01Z'),
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    outcome         outcome NOT NULL,
    notes           text NOT NULL
                    CONSTRAINT notes_length CHECK (char_length(notes) BETWEEN 1 AND 10000)
                    CONSTRAINT notes_trimmed CHECK (notes = btrim(notes, E' \t\n\x0B\f\r')),
    amends          bigint
                    CONSTRAINT amends_an_earlier_interaction CHECK (amends < id),
    idempotency_key text
                    CONSTRAINT idempotency_key_visible_ascii CHECK (idempotency_key ~ '^[!-~]{1,255}$'),
    PRIMARY KEY (patient_id, id) INCLUDE (occurred_at), -- a cursor's position is read from this index alone
    CONSTRAINT interactions_amends FOREIGN KEY (patient_id, amends) REFERENCES interactions (patient_id, id),
    CONSTRAINT only_an_amendment_strikes_out CHECK (outcome <> 'entered_in_error' OR amends IS NOT NULL)
);

-- An interaction is amended at most once, and a patient's idempotency keys are unique.
CREATE UNIQUE INDEX interactions_amended_once
    ON interactions (patient_id, amends) WHERE amends IS NOT NULL;
CREATE UNIQUE INDEX interactions_idempotency_key
    ON interactions (patient_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE INDEX interactions_history      ON interactions (patient_id, occurred_at DESC, id DESC);
CREATE INDEX interactions_by_doctor    ON interactions (doctor_id, patient_id);
CREATE INDEX doctors_by_name           ON doctors (name, id);
CREATE INDEX patients_by_name          ON patients (name, id);
CREATE INDEX patients_by_health_status ON patients (health_status, name, id);
CREATE INDEX patients_by_search_name   ON patients USING gin (search_name gin_trgm_ops);

-- Every interaction, with the id of the one that amended it, or NULL.
CREATE VIEW all_interactions AS
SELECT i.*,
       (SELECT a.id FROM interactions a WHERE a.patient_id = i.patient_id AND a.amends = i.id) AS amended_by
FROM   interactions i;

-- The interactions that count: neither amended nor entered in error. The columns are those of all_interactions, so
-- that one query can read either view. Both views look an amendment up for each interaction, by a sub-select: with a
-- join instead PostgreSQL may read and sort a whole history for one page.
CREATE VIEW current_interactions AS
SELECT i.*,
       NULL::bigint AS amended_by
FROM   interactions i
WHERE  i.outcome <> 'entered_in_error'
  AND  (SELECT true FROM interactions a WHERE a.patient_id = i.patient_id AND a.amends = i.id) IS NOT TRUE;

-- Interactions are append-only.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'interactions are append-only: add an amendment instead';
END $$;

CREATE TRIGGER interactions_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON interactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Checks a new interaction against the patient's birth date and updates the patient's health status. SECURITY DEFINER,
-- because the service's role may not update patients.
CREATE FUNCTION apply_to_patient() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    born   date;
    latest record;
BEGIN
    -- Lock the patient, so that writers take turns. In READ COMMITTED each then sees what the others have committed.
    SELECT birth_date INTO born FROM patients WHERE id = NEW.patient_id FOR NO KEY UPDATE;

    -- In UTC+14 a day begins 14 hours before it does in UTC. Striking out is always allowed, because the birth date
    -- may have been corrected since. The message ends up in logs, so it names the rule but not the date.
    IF NEW.outcome <> 'entered_in_error'
       AND NEW.occurred_at < (born::timestamp - interval '14 hours') AT TIME ZONE 'UTC' THEN
        RAISE EXCEPTION 'interaction violates rule "occurred_at_not_before_birth"' USING ERRCODE = 'check_violation';
    END IF;

    SELECT   i.outcome::text::health_status AS status, i.occurred_at
    INTO     latest
    FROM     current_interactions i
    WHERE    i.patient_id = NEW.patient_id
    ORDER BY i.occurred_at DESC, i.id DESC
    LIMIT    1;

    -- Update even if nothing changes: a concurrent REPEATABLE READ writer of this patient, whose snapshot lacks this
    -- interaction, then fails.
    UPDATE patients
    SET    health_status = coalesce(latest.status, 'unknown'), last_interaction_at = latest.occurred_at
    WHERE  id = NEW.patient_id;
    RETURN NULL;
END $$;

-- Only the owner may use this function: any other role could attach it to a table of its own, and run it as the owner.
REVOKE EXECUTE ON FUNCTION apply_to_patient() FROM PUBLIC;

CREATE TRIGGER interactions_apply_to_patient
    AFTER INSERT ON interactions
    FOR EACH ROW EXECUTE FUNCTION apply_to_patient();

-- Both triggers are ALWAYS enabled, so that a session whose session_replication_role is 'replica' cannot bypass them.
ALTER TABLE interactions ENABLE ALWAYS TRIGGER interactions_append_only;
ALTER TABLE interactions ENABLE ALWAYS TRIGGER interactions_apply_to_patient;

-- The service logs in as this role, which owns nothing: it can only read, and insert the columns of an interaction
-- that come from a request. The role has no password until the operator sets one. It may exist already, because roles
-- are shared by all databases of a server.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'patient_interactions') THEN
        CREATE ROLE patient_interactions LOGIN;
    END IF;
END $$;

GRANT SELECT ON doctors, patients, interactions, all_interactions, current_interactions TO patient_interactions;
GRANT INSERT (patient_id, doctor_id, occurred_at, outcome, notes, amends, idempotency_key)
    ON interactions TO patient_interactions;
