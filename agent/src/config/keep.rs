//! What is kept on disk: `[keep]`.

use serde::Deserialize;

use crate::release::Quota;

/// What is kept on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// How many releases; 5 by default. Those in need are kept beyond it.
    pub releases: usize,
    /// How much releases take together, without what they share with dependency trees; 5,120 MiB by
    /// default. Where those in need take more, nothing further is prepared.
    pub releases_mib: u64,
    /// How many dependency trees, and as many that were built; 4 by default. Those in need are kept beyond
    /// it.
    pub dependencies: usize,
    /// How much dependency trees take together; 10,240 MiB by default: two are always in need, and the
    /// largest that are common have some 5 GiB.
    pub dependencies_mib: u64,
    /// How much space stays free; 2,048 MiB by default. Checked before the first write, and while a
    /// fetch goes on.
    pub free_mib: u64,
    /// How large the git cache may grow before it is cloned anew; 2,048 MiB by default.
    pub git_mib: u64,
    /// How large the package managers' caches may grow before they are emptied; 1,024 MiB by default.
    pub package_cache_mib: u64,
    /// How much the app's log and the one before it take together; 256 MiB by default.
    pub log_mib: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            releases: 5,
            releases_mib: 5120,
            dependencies: 4,
            dependencies_mib: 10_240,
            free_mib: 2048,
            git_mib: 2048,
            package_cache_mib: 1024,
            log_mib: 256,
        }
    }
}

impl Keep {
    /// Returns how many releases and trees there may be, and how large.
    #[must_use]
    pub fn quota(&self) -> Quota {
        Quota {
            releases: self.releases,
            releases_mib: self.releases_mib,
            trees: self.dependencies,
            trees_mib: self.dependencies_mib,
        }
    }
}
