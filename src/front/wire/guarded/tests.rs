//! The front's suite over this listener, and what only this one promises.

use std::sync::Arc;

use super::{Guarded, GuardedBounds, ListenAddr, Settings, TrustedProxies};
use crate::front::pools::Pools;
use crate::front::wire::suite::{Running, front_suite};
use crate::front::wire::{Bounds, Service};

fn start(service: Arc<dyn Service>, bounds: Bounds) -> Running {
    start_with(service, bounds, GuardedBounds::default())
}

fn start_with(service: Arc<dyn Service>, bounds: Bounds, guarded: GuardedBounds) -> Running {
    let pools = Arc::new(Pools::new(bounds.workers, bounds.queue_max));
    let settings = Settings {
        addresses: ListenAddr::parse_list("127.0.0.1:0").unwrap(),
        bounds,
        guarded,
        trusted_proxies: TrustedProxies::default(),
    };
    let listener = Guarded::bind(settings, Arc::clone(&pools), service).unwrap();
    let address = listener.addresses()[0];
    Running::start(Arc::new(listener), pools, address)
}

front_suite!(start);
