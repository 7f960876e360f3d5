//! Tables that `pgherd.default_distribution` has made sharded become local when a function of the user, or a trigger's, uses them: it runs
//! inside one shard, and finds all of their rows there. `catalog` says which tables those are.

use crate::convert;
use crate::work::Work;
use pgherd_model::{Name, ServerError, quote_literal};
use std::collections::BTreeMap;

/// After relations have got these names: makes local what yields to functions that use them.
pub(crate) async fn after(work: &mut Work<'_, '_>, names: &[&str]) -> Result<(), ServerError> {
    if names.is_empty() || !work.snapshot.sharded().any(|t| t.may_yield()) {
        return Ok(());
    }
    let names: Vec<_> = names.iter().map(|n| quote_literal(n)).collect();
    let mentioned = format!("SELECT pgherd.bodies_mention({})", names.join(", "));
    if work.value(&mentioned).await?.as_deref() != Some("t") {
        return Ok(());
    }
    work.reload().await?;
    let yielding = work.snapshot.yielding.clone();
    make_local(work, yielding).await
}

/// Makes these tables local, each for its reason, as far as that can be, and says so. What cannot be stays as it is, and the function is
/// refused where it is called.
pub(crate) async fn make_local(
    work: &mut Work<'_, '_>,
    mut yielding: BTreeMap<Name, String>,
) -> Result<(), ServerError> {
    while let Some((name, why)) = yielding.pop_first() {
        // One that is linked with another has become local along with that one.
        let table = work.snapshot.table(&name).cloned();
        let Some(table) = table.filter(|t| t.sharded().is_some()) else {
            continue;
        };
        if !convert::is_free(work, &table).await? {
            continue;
        }
        convert::free(work, &name, &why).await?;
    }
    Ok(())
}
