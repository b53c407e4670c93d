//! The daemon: opens the pool, presents its volumes, answers the REST API until it is told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::error::{Error, Result};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub mod api;
pub mod attach;
mod changed;
pub mod config;
pub mod corrupt;
pub mod engine;
pub mod events;
pub mod faults;
pub mod fronts;
pub mod health;
pub mod instance;
pub mod jobs;
pub mod known_disks;
pub mod nas;
pub mod notify;
pub mod protection;
pub mod quiesce;
pub mod rescan;
pub mod state;
pub mod ublk;
pub mod upgrade;

#[cfg(test)]
pub mod double;

use attach::{Attachments, FrontEnds};
use config::{Config, LogFormat};
use engine::Engine;
use events::observer::Observer;
use events::origin::Peer;
use events::{Events, lifetime};
use faults::Faults;
use instance::{Instance, clear_socket};
use nas::{FileSystems, Servers};
use protection::runner::{Runs, keep_running};
use state::Appliance;
use upgrade::Upgrades;

/// How long requests under way may keep a stopping daemon.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause between looks at what the pool does by itself.
const FOLLOW: Duration = Duration::from_secs(2);

/// Serves until a signal or a request ends it, or another program goes on in this process.
pub fn serve(config: &Config, upgrades: &Arc<Upgrades>) -> Result<()> {
    start_log(config)?;
    let threads = config.threads.value;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("ashlar")
        // A loop device on a file of ours writes to us what memory pressure flushes: our threads must not wait for that.
        .on_thread_start(|| {
            blockdev::frontend::loopdev::set_io_flusher();
        })
        .enable_all()
        .build()
        .map_err(|e| Error::io(format!("starting the runtime: {e}")))?;
    let ended = runtime.block_on(run(config, upgrades));
    // Told on standard error by the command; a log elsewhere needs it too.
    if let (Err(e), Some(_)) = (&ended, &config.log_file.value) {
        tracing::error!(error = %e, "the daemon failed");
    }
    // Also when the pool could not be closed: the successor recovers it as after a crash.
    let handed_over = upgrades.hand_over();
    // Blocking threads (an open of a hung device) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(5));
    ended.and(handed_over)
}

async fn run(config: &Config, upgrades: &Arc<Upgrades>) -> Result<()> {
    for dir in [Some(config.state_dir.value.as_path()), config.pid_file.parent()].into_iter().flatten() {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("making {}: {e}", dir.display())))?;
    }
    let stopping = watch::Sender::new(false);
    watch_signals(stopping.clone(), upgrades.clone())?;
    let _instance = Instance::claim(&config.pid_file)?;
    clear_socket(&config.socket.value)?;
    let events = Events::open(&config.state_dir.value);
    let events = Arc::new(events.map_err(|e| Error::io(format!("starting the list of events: {e}")))?);
    let after_crash = lifetime::started(&events);
    let ended = open_and_serve(config, upgrades, &events, after_crash, stopping).await;
    lifetime::stopped(&events, &ended);
    ended
}

async fn open_and_serve(
    config: &Config,
    upgrades: &Arc<Upgrades>,
    events: &Arc<Events>,
    after_crash: bool,
    stopping: watch::Sender<bool>,
) -> Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), disks = config.disks.value.len(), "opening the pool");
    notify::starting("opening the pool");
    let began = Instant::now();
    let (engine, faults) = engine::open(config).await?;
    let took = began.elapsed();
    lifetime::opened(events, &engine.status().await.name, took, &engine.stats().await, after_crash);
    let served = async {
        let fronts = fronts::start(config, engine.clone(), engine.status().await.uuid).await?;
        serve_api(config, upgrades, engine.clone(), fronts, faults, events.clone(), stopping).await
    };
    let served = served.await;
    let closed = engine.close().await;
    if closed.is_ok() {
        tracing::info!("the pool is closed");
    }
    served.and(closed)
}

/// Presents the volumes and answers requests on the API socket until `stopping`.
pub async fn serve_api(
    config: &Config,
    upgrades: &Arc<Upgrades>,
    engine: Arc<dyn Engine>,
    fronts: FrontEnds,
    faults: Option<Faults>,
    events: Arc<Events>,
    stopping: watch::Sender<bool>,
) -> Result<()> {
    let attachments = Attachments::new(engine.clone(), fronts);
    notify::starting("presenting volumes");
    let restored = attachments.restore().await;
    let mut stop = stopping.subscribe();
    let servers = Servers::new(
        config.nas_servers.clone(),
        config.state_dir.value.clone(),
        config.nas_mounts.value.clone(),
        &engine.status().await.uuid.to_string(),
    );
    let appliance = Arc::new(Appliance {
        engine,
        servers,
        attachments,
        nas: FileSystems::new(config.nas_mounts.value.clone(), config.nas_memory()),
        jobs: Arc::default(),
        observer: parking_lot::Mutex::new(Observer::after(&events.all())),
        events,
        health: health::Watch::new(
            Arc::new(blockdev::disk::health::read),
            Duration::from_secs(config.health_interval.value),
        ),
        faults,
        state_dir: config.state_dir.value.clone(),
        disks: config.disks.value.clone(),
        rescans: tokio::sync::Mutex::default(),
        config: config.rows(),
        stopping,
        upgrades: upgrades.clone(),
        runs: Runs::new(config.zone.value.0.clone()),
        protection: tokio::sync::Mutex::default(),
        quiescing: config.quiescing(),
        upgrading: tokio::sync::Mutex::default(),
    });
    quiesce::end_left_over(&appliance);
    if !config.read_only {
        notify::starting("mounting file systems");
        appliance.nas.start(&appliance).await;
        notify::starting("starting NAS servers");
        appliance.servers.start(&appliance).await;
    }
    let followed = tokio::spawn(follow(appliance.clone()));
    let kept = (!config.read_only).then(|| tokio::spawn(keep_running(appliance.clone())));
    let (router, _) = api::router(appliance.clone());
    let socket = &config.socket.value;
    let bound = UnixListener::bind(socket).and_then(|listener| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map(|()| listener)
    });
    let result = match bound {
        Ok(listener) => {
            tracing::info!(socket = %socket.display(), "serving");
            if let Some(event) = upgrades.served(&restored, &config.state_dir.value) {
                appliance.record(event);
            }
            notify::ready(&appliance.engine.status().await.name);
            let mut told = stop.clone();
            let router = router.into_make_service_with_connect_info::<Peer>();
            let server = axum::serve(listener, router).with_graceful_shutdown(async move {
                let _ = told.wait_for(|stop| *stop).await;
            });
            let mut server = tokio::spawn(async move { server.await });
            tokio::select! {
                // When both are ready it was told to end.
                biased;
                _ = stop.wait_for(|stop| *stop) => {
                    match upgrades.successor() {
                        Some(version) => notify::reloading(&version),
                        None => notify::stopping(),
                    }
                    if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
                        tracing::warn!("requests under way are cut off");
                        server.abort();
                    }
                    Ok(())
                }
                ended = &mut server => Err(Error::io(format!("the API server ended unexpectedly: {ended:?}"))),
            }
        }
        Err(e) => Err(Error::io(format!("listening on {}: {e}", socket.display()))),
    };
    followed.abort();
    if let Some(kept) = kept {
        kept.abort();
    }
    // What rules are in the middle of is done to its end.
    appliance.quiescing.wait().await;
    let _ = tokio::time::timeout(DRAIN, appliance.runs.turn.lock()).await;
    tracing::info!("stopping: front ends first");
    appliance.servers.stop().await;
    appliance.nas.stop().await;
    upgrades.leaving();
    appliance.attachments.stop().await;
    let _ = std::fs::remove_file(socket);
    result
}

/// Keeps jobs for what the pool does by itself (rebuilds, moves, scrubs) and records what changes. Looks for drives of the pool when one was
/// plugged in, and asks those there are for their health.
async fn follow(appliance: Arc<Appliance>) {
    let mut plugged = rescan::Plugged::now();
    loop {
        if plugged.has_new() {
            let appliance = appliance.clone();
            tokio::spawn(async move {
                if let Err(e) = rescan::rescan(&appliance).await {
                    tracing::warn!(error = %e, "looking for drives that were plugged in");
                }
            });
        }
        // Attachments may be in the middle of a change that takes long; what the pool does is followed nevertheless.
        let status = match tokio::time::timeout(FOLLOW, appliance.status()).await {
            Ok(status) => {
                appliance.observe(&status);
                status
            }
            Err(_) => appliance.engine.status().await,
        };
        appliance.nas.keep_room(&appliance).await;
        appliance.health.ask(&status.disks);
        appliance.jobs.follow("pool.rebuild", status.rebuild.map(|r| (r.done, r.total)));
        appliance.jobs.follow("pool.scrub", status.scrub.running.then_some((status.scrub.done, status.scrub.total)));
        tokio::time::sleep(FOLLOW).await;
    }
}

/// SIGTERM and SIGINT stop the daemon in order, also one that was about to hand over; a second one ends it at once, which the pool survives like a crash.
fn watch_signals(stopping: watch::Sender<bool>, upgrades: Arc<Upgrades>) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::io(format!("listening for signals: {e}")));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            let called_off = upgrades.call_off();
            if stopping.send_replace(true) && !called_off {
                tracing::error!("told to stop twice: ending without closing the pool");
                std::process::exit(1);
            }
            tracing::info!("told to stop");
        }
    });
    Ok(())
}

fn start_log(config: &Config) -> Result<()> {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::writer::BoxMakeWriter;

    let filter =
        EnvFilter::try_new(&config.log_filter.value).map_err(|e| Error::invalid(format!("the log filter: {e}")))?;
    let to_file = config.log_file.value.is_some();
    let writer = match &config.log_file.value {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            let file = opened.map_err(|e| Error::io(format!("opening the log file {}: {e}", path.display())))?;
            BoxMakeWriter::new(Arc::new(file))
        }
    };
    let colours = !to_file && std::io::IsTerminal::is_terminal(&std::io::stderr());
    // When the log cannot be written, standard error mostly cannot either, and complaining there would panic: in the middle of whatever
    // task had something to say.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    let builder = builder.log_internal_errors(false);
    match config.log_format.value {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|e| Error::io(format!("starting the log: {e}")))
}
