//! The remotes in force, replaced as a whole when the configuration is read anew.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use crate::cache::Target;
use crate::config::Remotes;
use crate::upstream::Upstream;

/// One reading of the configuration, ready to serve.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The remotes as configured.
    pub remotes: Arc<Remotes>,
    /// The remotes with the way to their upstreams, by name.
    pub targets: BTreeMap<String, Arc<Target>>,
    /// The way to where a remote's releases are listed, by the remote's name.
    pub releases: BTreeMap<String, Arc<dyn Upstream>>,
}

/// The catalog in force. A request holds the one that it began with.
#[derive(Debug, Default)]
pub struct Catalogs {
    // Guards which catalog is in force; nothing else is taken while it is held.
    current: RwLock<Arc<Catalog>>,
}

impl Catalogs {
    /// Begins with a catalog.
    pub fn new(catalog: Catalog) -> Self {
        Self { current: RwLock::new(Arc::new(catalog)) }
    }

    /// The catalog in force.
    pub fn current(&self) -> Arc<Catalog> {
        Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Puts another one in force; requests under way keep theirs.
    pub fn replace(&self, catalog: Catalog) {
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Arc::new(catalog);
    }
}
