//! The `artifactapi` command: arguments, run, exit code.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use artifactapi::artifact::RemoteName;
use artifactapi::cache::upkeep::{self, Reindex, Verify};
use artifactapi::chain::chain;
use artifactapi::clock::Clock;
use artifactapi::config::env::{Engines, LogFormat, LogLevel, Settings};
use artifactapi::config::tokens::Scope;
use artifactapi::front::wire::raise_descriptor_limit;
use artifactapi::ops::cli::{self, Cli, Command};
use artifactapi::ops::upkeep::{Form, Report, Summary};
use artifactapi::ops::{ask, token, warm};
use artifactapi::wiring::doors;
use artifactapi::wiring::ports::{self, Backends, OpenedPorts};
use artifactapi::wiring::{self, App};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The exit code after a second signal.
const EXIT_AT_ONCE: i32 = 130;

fn main() -> ExitCode {
    // With the signal caught, a write beyond the size that files may have (RLIMIT_FSIZE) is an
    // error like that of a full disk, and not the end of the process.
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, Arc::default()) {
        eprintln!("SIGXFSZ cannot be caught: {error}");
        return ExitCode::FAILURE;
    }
    match Cli::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => with_settings(|settings, engines| serve(settings, &engines)),
        Command::Check { file } => with_settings(|settings, _| check(&settings, file.as_deref())),
        Command::Reindex { dry_run, json } => {
            let writes = cli::writes(dry_run);
            run_upkeep("reindex", cli::form(json), |_, opened, report| {
                let how = Reindex { writes, trust: opened.trust };
                let done = upkeep::reindex(&opened.ports, how, report)?;
                Ok(Summary::Reindexed(done, writes))
            })
        }
        Command::Verify { remote, repair, json } => {
            run_upkeep("verify", cli::form(json), |settings, opened, report| {
                // Who names a local repository means that.
                let fetchable = match (&remote, repair) {
                    (None, true) => Some(wiring::fetchable(settings)?),
                    _ => None,
                };
                let what = Verify { remote, repair: cli::repair(repair), fetchable };
                let done = upkeep::verify(&opened.ports, &what, report)?;
                if let (Some(name), 0) = (&what.remote, done.rows.files) {
                    wiring::expect_remote(settings, name)?;
                }
                Ok(Summary::Verified(done))
            })
        }
        Command::Warm(what) => with_settings(|settings, _| warm_up(&settings, &what)),
        Command::Health => with_settings(|settings, _| health(&settings)),
        Command::Token { name, scopes, remotes } => make_token(&name, &scopes, &remotes),
    }
}

fn with_settings(run: impl FnOnce(Settings, Engines) -> ExitCode) -> ExitCode {
    let settings = match Settings::read(&wiring::variable) {
        Ok(settings) => settings,
        Err(errors) => return refuse(&errors),
    };
    match Engines::read(&wiring::variable) {
        Ok(engines) => run(settings, engines),
        Err(errors) => refuse(&errors),
    }
}

fn warm_up(settings: &Settings, what: &warm::Warm) -> ExitCode {
    let server = match what.server.clone().map_or_else(|| doors::url(settings), Ok) {
        Ok(server) => server,
        Err(error) => return refuse(&error),
    };
    let token = wiring::variable(warm::TOKEN_VARIABLE);
    match warm::run(what, &server, token.as_deref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => refuse(&error),
    }
}

fn health(settings: &Settings) -> ExitCode {
    let door = match doors::door(settings) {
        Ok(door) => door,
        Err(error) => return refuse(&error),
    };
    match ask::health(&door) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

/// Runs a command on the backends of the environment. Its exit code says whether all is well.
fn run_upkeep(
    name: &'static str,
    form: Form,
    run: impl FnOnce(&Settings, &OpenedPorts, &mut Report) -> Result<Summary, Box<dyn Error>>,
) -> ExitCode {
    with_settings(|settings, engines| {
        start_logs(&settings);
        let stored = ports::expect_stored(&settings, &engines);
        let opened = stored.and_then(|()| ports::open(&settings, &engines, &Clock::system()));
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => return refuse(&error),
        };
        let mut report = Report::to_terminal(name, form);
        let done = run(&settings, &opened, &mut report);
        // Before the summary: whoever reads that may rely on it.
        opened.close();
        match done {
            Ok(summary) if report.sum_up(&summary) => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                // Takes the bar off the line.
                drop(report);
                refuse(&*error)
            }
        }
    })
}

fn make_token(name: &str, scopes: &[Scope], remotes: &[RemoteName]) -> ExitCode {
    match token::make(name, scopes, remotes) {
        Ok(made) => {
            // Not to standard output, which goes into the tokens file with `>>`.
            eprintln!("The token; it is stored nowhere and cannot be shown again:");
            eprintln!("{}", made.token);
            eprintln!("Its line for TOKENS_FILE goes to standard output:");
            println!("{}", made.line);
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
    }
}

fn check(settings: &Settings, file: Option<&Path>) -> ExitCode {
    let path = file.unwrap_or(&settings.config_path);
    let report = wiring::check(path, settings.regex_size_max);
    print!("{report}");
    if report.is_usable() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn serve(settings: Settings, engines: &Engines) -> ExitCode {
    start_logs(&settings);
    raise_descriptor_limit();
    let app = match App::start(settings, engines) {
        Ok(app) => Arc::new(app),
        Err(error) => return refuse(&error),
    };
    if let Err(error) = watch_signals(&app).and_then(|()| start_upkeep(&app)) {
        return refuse(&error);
    }
    let Backends { files, index, coordination } = app.backends();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        files,
        index,
        coordination,
        "listening on {}",
        app.addresses()
    );
    let served = app.serve();
    let finished = app.finish();
    if !finished {
        tracing::warn!("the grace period ended before every request did");
    }
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("artifactapi: {}", chain(error));
    ExitCode::FAILURE
}

/// SIGHUP reloads; SIGTERM and SIGINT stop gently, and the second of them at once.
fn watch_signals(app: &Arc<App>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    let app = Arc::clone(app);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut is_stopping = false;
        for signal in signals.forever() {
            match signal {
                SIGHUP => {
                    app.reload();
                    app.reload_tokens();
                }
                _ if is_stopping => std::process::exit(EXIT_AT_ONCE),
                _ => {
                    is_stopping = true;
                    tracing::info!("stopping: finishing what is in flight");
                    app.stop();
                }
            }
        }
    })?;
    Ok(())
}

fn start_upkeep(app: &Arc<App>) -> std::io::Result<()> {
    let (upkeep, sweep) = (Arc::clone(app), Arc::clone(app));
    std::thread::Builder::new().name("upkeep".to_owned()).spawn(move || upkeep.upkeep())?;
    std::thread::Builder::new().name("sweep".to_owned()).spawn(move || sweep.sweep())?;
    Ok(())
}

fn start_logs(settings: &Settings) {
    let level = match settings.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Who changed what is told whatever the level: it cannot be found out later.
    let level_of_changes = level.max(LevelFilter::INFO);
    let filter = Targets::new().with_default(level).with_target("change", level_of_changes);
    let logs = tracing_subscriber::fmt()
        .with_max_level(level_of_changes)
        .with_writer(std::io::stderr)
        // It would tell of a lost line on standard error, and panic where that is gone.
        .log_internal_errors(false);
    match settings.log_format {
        LogFormat::Json => logs.json().flatten_event(true).finish().with(filter).init(),
        LogFormat::Text => {
            let logs = logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            logs.finish().with(filter).init();
        }
    }
}
