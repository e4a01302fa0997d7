# The database with the schema and sample data, which PostgreSQL loads when its volume is empty.
FROM postgres:18-alpine AS db
# --chmod, because PostgreSQL's user must be able to read them, whatever the umask of the checkout.
COPY --chmod=644 schema.sql /docker-entrypoint-initdb.d/1-schema.sql
COPY --chmod=644 seed.sql /docker-entrypoint-initdb.d/2-seed.sql
# The development password, as in docker-compose.yml.
RUN echo "ALTER ROLE patient_interactions PASSWORD 'development';" > /docker-entrypoint-initdb.d/3-password.sql

FROM golang:1.26-alpine AS source
WORKDIR /src
ENV CGO_ENABLED=0
COPY go.mod go.sum ./
RUN go mod download
COPY *.go *.sql ./

FROM source AS build
RUN --mount=type=cache,target=/root/.cache/go-build go build -trimpath -ldflags='-s -w' -o /patient-interactions

FROM source AS tests
RUN --mount=type=cache,target=/root/.cache/go-build go test -c -o /tests
ENTRYPOINT ["/tests"]

FROM scratch AS service
# For sslmode=verify-full with a database elsewhere.
COPY --from=source /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /patient-interactions /
USER 65532:65532
# GOGC=400 collects garbage less often, which costs some 10 MB of memory and saves CPU time.
ENV ADDR=:8080 GOGC=400
EXPOSE 8080
ENTRYPOINT ["/patient-interactions"]
