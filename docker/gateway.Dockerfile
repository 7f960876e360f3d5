# A pgherd gateway: `docker build -f docker/gateway.Dockerfile -t pgherd-gateway .` in the root of the repository.

FROM rust:1.95-bookworm AS build
WORKDIR /pgherd
COPY Cargo.toml Cargo.lock ./
COPY crates crates
RUN cargo build --release --locked --package pgherd

FROM debian:bookworm-slim
RUN useradd --system --no-create-home --home-dir /nonexistent pgherd
COPY --from=build /pgherd/target/release/pgherd /usr/local/bin/pgherd
USER pgherd
ENTRYPOINT ["pgherd"]
CMD ["gateway", "--config", "/etc/pgherd/pgherd.toml"]
