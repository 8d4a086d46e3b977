//! The code store: host code of blocks, what is known of it, and all ways from block to block.

pub(crate) mod address_space;
pub(crate) mod blocks;
pub(crate) mod chaining;
pub(crate) mod code_cache;
pub(crate) mod eviction;
pub(crate) mod flag_variants;
pub(crate) mod inline_tlb;
pub(crate) mod jump_cache;
pub(crate) mod lookup_cache;
pub(crate) mod regions;
pub(crate) mod smc;
