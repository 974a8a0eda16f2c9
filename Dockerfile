# One image with all four programs; docker-compose.yml says which one a container runs.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/ ./cmd/... && mkdir -p /volumes/keys/public /volumes/trust

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/ /usr/local/bin/
# New volumes on /keys, /keys/public and /trust take their owner from here.
COPY --from=build --chown=65532:65532 /volumes/ /
WORKDIR /tmp
CMD ["omi", "--help"]
