FROM postgres:18-alpine AS db
# Loaded in this order, and only into an empty volume. Copied, since a checkout may not be readable for the container.
COPY --chmod=644 schema.sql /docker-entrypoint-initdb.d/1-schema.sql
COPY --chmod=644 seed.sql /docker-entrypoint-initdb.d/2-seed.sql

FROM golang:1.26-alpine AS source
WORKDIR /src
# The same for the service and the tests, so that they share what is compiled.
ENV CGO_ENABLED=0 GOFLAGS=-trimpath
COPY go.mod go.sum ./
RUN go mod download
COPY *.go *.sql ./

FROM source AS build
RUN --mount=type=cache,target=/root/.cache/go-build go build -ldflags='-s -w' -o /patient-interactions

FROM source AS tests
RUN --mount=type=cache,target=/root/.cache/go-build go test -c -o /tests
ENTRYPOINT ["/tests"]

FROM scratch
# To check the certificate of a database elsewhere (sslmode=verify-full).
COPY --from=source /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /patient-interactions /
USER 65532:65532
ENV ADDR=:8080
EXPOSE 8080
ENTRYPOINT ["/patient-interactions"]
