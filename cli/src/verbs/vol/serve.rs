//! `vol-serve`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cenote_engine::{Error as Engine, Image, Node, VolumeInfo};
use cenote_image::nbd::{Export, Server, ServerOptions};
use cenote_pools::Error as Pools;
use clap::Args;

use super::VolumeArgument;
use crate::context::Context;
use crate::duration;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::out::quoted;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Serve a volume, or a layer of its chain, to NBD clients on a Unix socket
#[derive(Args, Debug)]
pub(super) struct VolServe {
    #[command(flatten)]
    volume: VolumeArgument,
    /// The socket; by default one in the node's runtime folder
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    socket: Option<PathBuf>,
    /// Let clients read only
    #[arg(long)]
    read_only: bool,
    /// Serve the layer this many steps below the volume, read-only; 0 is the volume itself
    #[arg(long, value_name = "DEPTH", default_value_t = 0)]
    layer: u32,
    /// Name of the export
    #[arg(long, value_name = "NAME", default_value = "")]
    export: String,
    /// Clients at once
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    max_clients: usize,
    /// End when the last client has gone
    #[arg(long)]
    exit_with_client: bool,
    /// End after this time, such as 90, 30s, 5m or 2h
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,
}

impl Verb for VolServe {
    const NAME: &'static str = "vol-serve";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "For one client that reads, for a second at most",
            "cenote vol-serve disk.qcow2 --read-only --exit-with-client --timeout 1s",
        ),
        example(
            "The volume below it",
            "cenote vol-serve overlay.qcow2 --layer 1 --socket base.sock --timeout 1s",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let read_only = self.read_only || self.layer > 0;
        let socket = self.socket_path(&node, &volume)?;
        let shown = socket.display().to_string();
        let rights = if read_only { "read-only" } else { "writable" };
        let plan = Plan::new(Self::NAME, &volume.name)
            .change_with("serve", volume.path.display().to_string(), rights)
            .change("make the socket", &shown);
        let image = if context.consent.dry_run {
            if !read_only {
                node.volume_ensure_changeable(&volume.id(), &[])?;
            }
            None
        } else {
            Some(self.layer_of(&volume, node.open_volume(&volume.id(), !read_only)?)?)
        };
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let Some(image) = image else { return Ok(()) };
        let interrupt = Interrupt::install().map_err(|error| {
            Failure::new(Code::E0101, "cannot install signal handlers")
                .next("cenote doctor")
                .source(error)
        })?;
        let export = Export {
            name: self.export.clone(),
            description: volume.id().to_string(),
            read_only,
            ..Export::new(Arc::new(image))
        };
        let options = ServerOptions {
            max_connections: self.max_clients,
            ..ServerOptions::new(export)
        };
        let server = Server::start(&socket, options).map_err(of_image)?;
        let uri = format!("nbd+unix:///{}?socket={shown}", self.export);
        let message = format!("Serving vol {} ({rights}) at {uri}", volume.name);
        context.done(&Done::new("volume", "serving", &volume.name, message).at(shown))?;
        self.wait(&server, &interrupt);
        server.stop().map_err(of_image)
    }
}

impl VolServe {
    fn socket_path(&self, node: &Node, volume: &VolumeInfo) -> Result<PathBuf> {
        let path = match &self.socket {
            Some(path) => path.clone(),
            None => node
                .runtime_dir()
                .join(format!("{}-{}.nbd", volume.pool, volume.name)),
        };
        // sockaddr_un holds 108 bytes with the ending zero; see unix(7).
        if path.as_os_str().len() > 107 {
            return Err(Failure::new(
                Code::E0308,
                format!("'{}' is too long for a socket", path.display()),
            )
            .why("a socket's path has at most 107 bytes")
            .fix("name a shorter path with --socket")
            .next(format!(
                "cenote vol-serve {} --socket ./disk.sock",
                quoted(&volume.name)
            )));
        }
        Ok(path)
    }

    /// The image that many layers below.
    fn layer_of(&self, volume: &VolumeInfo, image: Image) -> Result<Image> {
        let mut layer = image;
        for depth in 0..self.layer {
            let below = layer.backing().cloned();
            layer = below.ok_or_else(|| {
                Failure::new(
                    Code::E0404,
                    format!("there is no layer {} below {}", self.layer, volume.id()),
                )
                .why(format!("its chain ends {depth} layers below it"))
                .fix("choose a layer of the chain")
                .next(format!("cenote vol-chain {}", quoted(&volume.name)))
            })?;
        }
        Ok(layer)
    }

    fn wait(&self, server: &Server, interrupt: &Interrupt) {
        let deadline = self
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        while !interrupt.is_asked() && deadline.is_none_or(|end| Instant::now() < end) {
            if self.exit_with_client {
                if server.wait_until_unused(Some(LOOK)) {
                    return;
                }
            } else {
                std::thread::sleep(LOOK);
            }
        }
    }
}

fn of_image(error: cenote_image::Error) -> Failure {
    Engine::Storage(Pools::Image(error)).into()
}
