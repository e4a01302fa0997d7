# The database with the schema and sample data, which PostgreSQL loads when its volume is empty.
FROM postgres:18-alpine AS db
COPY --chmod=644 schema.sql /docker-entrypoint-initdb.d/1-schema.sql
COPY --chmod=644 seed.sql /docker-entrypoint-initdb.d/2-seed.sql
# For development. docker-compose.yml has the same password.
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
# Collect garbage less often: less CPU time for each request, for some 10 MB of memory.
ENV ADDR=:8080 GOGC=400
EXPOSE 8080
ENTRYPOINT ["/patient-interactions"]
