# One image with all four programs. docker-compose.yml says which of them a container runs.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The flags are those of a release (docs/releasing.md). The version comes from .git.
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/ ./cmd/... \
 && mkdir -p /volumes/keys/public /volumes/trust

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/ /usr/local/bin/
# New volumes on /keys, /keys/public and /trust get their owner from these folders.
COPY --from=build --chown=65532:65532 /volumes/ /
WORKDIR /tmp
CMD ["omi", "--help"]
