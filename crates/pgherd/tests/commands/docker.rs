//! The files in `docker/`, as far as they can be checked without an engine: what they refer to exists, the commands take
//! the arguments they are given, the gateways' configuration is valid, and a server with the shards' settings passes
//! `pgherd init`.

use crate::running::{output, pgherd};
use pgherd_local_cluster::PlainServer;
use saphyr::{LoadableYamlNode, Yaml};
use std::path::{Path, PathBuf};

fn docker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docker")
        .canonicalize()
        .expect("docker/")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// A setting of a service, its own or the one it takes over with `<<`.
fn setting<'a, 'input>(service: &'a Yaml<'input>, name: &str) -> Option<&'a Yaml<'input>> {
    service
        .as_mapping_get(name)
        .or_else(|| service.as_mapping_get("<<")?.as_mapping_get(name))
}

fn texts(list: &Yaml) -> Vec<String> {
    list.as_sequence()
        .into_iter()
        .flatten()
        .filter_map(Yaml::as_str)
        .map(str::to_string)
        .collect()
}

/// The instructions of a Dockerfile, continued lines joined.
fn instructions(file: &Path) -> Vec<String> {
    let text = read(file).replace("\\\n", " ");
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_string).collect()
}

#[test]
fn what_compose_refers_to_exists() {
    let docker = docker();
    let text = read(&docker.join("compose.yaml"));
    let documents = Yaml::load_from_str(&text).expect("YAML");
    let services = documents[0]
        .as_mapping_get("services")
        .and_then(Yaml::as_mapping)
        .expect("services");
    let names: Vec<_> = services.keys().filter_map(Yaml::as_str).collect();
    assert_eq!(names, ["shard1", "shard2", "shard3", "init", "gateway1", "gateway2"]);
    let volumes = documents[0].as_mapping_get("volumes").expect("volumes");
    for (name, service) in services {
        let name = name.as_str().expect("a name");
        let build = setting(service, "build").expect("build");
        let field = |field| {
            build
                .as_mapping_get(field)
                .and_then(Yaml::as_str)
                .expect("context and dockerfile")
        };
        let context = docker.join(field("context"));
        check_copies(&context, &context.join(field("dockerfile")));
        for volume in setting(service, "volumes").map(texts).unwrap_or_default() {
            let source = volume.split(':').next().expect("a source");
            let known = if source.starts_with('.') {
                docker.join(source).exists()
            } else {
                volumes.as_mapping_get(source).is_some()
            };
            assert!(known, "{name}: {volume}");
        }
        if let Some(needed) = setting(service, "depends_on").and_then(Yaml::as_mapping) {
            assert!(
                needed
                    .keys()
                    .all(|needed| names.contains(&needed.as_str().expect("a name"))),
                "{name}"
            );
        }
        if let Some(command) = setting(service, "command") {
            // Wrong arguments are an error before `--help` is looked at.
            let mut help = pgherd();
            help.args(texts(command)).arg("--help");
            let said = output(help);
            assert!(said.status.success(), "{name}: {said:?}");
        }
    }
}

/// Every COPY from the context names something that is there.
fn check_copies(context: &Path, dockerfile: &Path) {
    let instructions = instructions(dockerfile);
    assert!(instructions[0].starts_with("FROM "), "{dockerfile:?}");
    for copy in instructions.iter().filter_map(|line| line.strip_prefix("COPY ")) {
        let words: Vec<_> = copy.split_whitespace().collect();
        if words[0].starts_with("--from=") {
            continue;
        }
        for source in &words[..words.len() - 1] {
            assert!(
                context.join(source).exists(),
                "{dockerfile:?} copies {source}, which is not in {context:?}"
            );
        }
    }
}

#[test]
fn the_gateways_image_is_made_with_a_rust_that_builds_it() {
    let from = &instructions(&docker().join("gateway.Dockerfile"))[0];
    let manifest = read(&docker().join("../Cargo.toml"));
    let wanted = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .expect("rust-version");
    assert!(
        from.contains(&format!("rust:{}", wanted.trim_matches('"'))),
        "{from} but rust-version is {wanted}"
    );
}

#[test]
fn the_gateways_configuration_is_valid_and_names_the_published_ports() {
    let config = docker().join("pgherd.toml");
    let status = |secret: &str| {
        let mut command = pgherd();
        command
            .env("PGHERD_SECRET", secret)
            .args(["status", "--config"])
            .arg(&config);
        let said = output(command);
        String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned()
    };
    assert!(status("short").contains("cluster.secret"));
    let text = status(&"s".repeat(64));
    assert!(text.contains("shard3"), "{text}");
    let compose = read(&docker().join("compose.yaml"));
    for port in [5441, 5442, 5443] {
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
        assert!(
            compose.contains(&format!("127.0.0.1:{port}:5432")),
            "{port} is published"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_the_shards_settings_passes_init() {
    let instructions = instructions(&docker().join("shard.Dockerfile"));
    let command = instructions
        .iter()
        .find_map(|line| line.strip_prefix("CMD "))
        .expect("CMD");
    let command = Yaml::load_from_str(command).expect("a list");
    let settings: Vec<_> = texts(&command[0])
        .iter()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    assert_eq!(settings.len(), 5, "{settings:?}");
    let server = PlainServer::ephemeral_with(true, false, settings).await.expect("start");
    let client = server.connect("postgres", "postgres").await.expect("connect");
    client
        .batch_execute(&read(&docker().join("shard.sql")))
        .await
        .expect("shard.sql");
    let config = tempfile::NamedTempFile::new().expect("file");
    let port = server.port();
    let text =
        format!("[cluster]\nname = 'c'\n[[shards]]\nid = 1\nname = 'shard1'\nhost = '127.0.0.1'\nport = {port}\n");
    std::fs::write(config.path(), text).expect("write");
    let mut init = pgherd();
    init.env("PGHERD_SECRET", "s".repeat(64))
        .args(["init", "--config"])
        .arg(config.path());
    let said = output(init);
    assert!(said.status.success(), "{said:?}");
}
