# The image of artifactapi: one binary, its example configuration, no shell.
#
#   docker build -t artifactapi .
#   docker run --read-only -p 8000:8000 -v cache:/var/lib/artifactapi artifactapi
#
# Without access to the network both base images can be others, and the crates can lie beside
# the sources:
#
#   mkdir -p .cargo && cargo vendor --locked > .cargo/config.toml
#   docker build --build-arg BUILD_IMAGE=… --build-arg RUNTIME_IMAGE=… -t artifactapi .
#
# BUILD_IMAGE needs cargo, a C compiler and install(1). RUNTIME_IMAGE needs the C library
# (as new as that of BUILD_IMAGE), libgcc_s and root certificates in /etc/ssl/certs.
ARG BUILD_IMAGE=docker.io/library/rust:1-slim-trixie
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
# Downloads are kept between builds, compiled files are not: they could be of another base image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --release --locked --bin artifactapi
# What the runtime stage copies: that one runs no command, as its base need not have a shell.
RUN install -D -m 0755 target/release/artifactapi /image/usr/local/bin/artifactapi \
    && install -D -m 0644 remotes.yaml /image/etc/artifactapi/remotes.yaml \
    && install -d -m 0750 /image/var/lib/artifactapi

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="artifactapi" \
      org.opencontainers.image.description="A caching proxy for artifacts: one binary in front of release hosts and package repositories" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image/usr/local/bin/artifactapi /usr/local/bin/artifactapi
COPY --from=build /image/etc/artifactapi /etc/artifactapi
# A new volume takes over the owner of the folder that it covers.
COPY --from=build --chown=65532:65532 /image/var/lib/artifactapi /var/lib/artifactapi
# SQLite would look for room for its temporary files in /tmp, which is read-only.
ENV CONFIG_PATH=/etc/artifactapi/remotes.yaml \
    DATA_DIR=/var/lib/artifactapi \
    SQLITE_TMPDIR=/var/lib/artifactapi
# By number, so that an orchestrator can tell that it is not root.
USER 65532:65532
VOLUME ["/var/lib/artifactapi"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/artifactapi", "health"]
ENTRYPOINT ["/usr/local/bin/artifactapi"]
CMD ["serve"]
