//! Making and changing rules and policies.

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::pool::Managed;

use super::{Objects, StoredPolicy, check_rule, put, take};
use crate::daemon::engine::Engine;
use crate::daemon::state::now_s;
use crate::wire::protection::{Policy, PolicySpec, Rule, RuleSpec};

/// Most rules of a policy.
const RULES_MAX: usize = 16;

impl Objects {
    /// All rules, by name.
    pub fn rules(&self, next: impl Fn(u32) -> Option<u64>) -> Vec<Rule> {
        let mut out: Vec<Rule> = self.rules.all.iter().map(|(n, spec)| self.describe_rule(*n, spec, &next)).collect();
        out.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        out
    }

    /// One rule.
    pub fn rule(&self, name: &str, next: impl Fn(u32) -> Option<u64>) -> Result<Rule> {
        let (number, spec) = self.rules.get(name)?;
        Ok(self.describe_rule(number, spec, &next))
    }

    fn describe_rule(&self, number: u32, spec: &RuleSpec, next: &dyn Fn(u32) -> Option<u64>) -> Rule {
        Rule { spec: spec.clone(), policies: self.policies_with(number), next_s: next(number) }
    }

    fn policies_with(&self, rule: u32) -> Vec<String> {
        self.policies.all.values().filter(|p| p.rules.contains(&rule)).map(|p| p.name.clone()).collect()
    }

    /// Makes a rule.
    pub async fn create_rule(&self, engine: &dyn Engine, spec: &RuleSpec) -> Result<()> {
        self.rules.check_free(&spec.name, None)?;
        check_rule(spec)?;
        let used = engine.snapshots(None).await?;
        let number = self.next(&self.rules, used.iter().map(|s| s.rule_id))?;
        engine.manage(vec![put(number, spec)?]).await
    }

    /// Changes a rule. Snapshots that are there keep the time at which they expire.
    pub async fn change_rule(&self, engine: &dyn Engine, name: &str, spec: &RuleSpec) -> Result<()> {
        let (number, _) = self.rules.get(name)?;
        self.rules.check_free(&spec.name, Some(number))?;
        check_rule(spec)?;
        engine.manage(vec![put(number, spec)?]).await
    }

    /// Fails while something cannot be read that may refer to what is to be deleted.
    fn check_readable(&self) -> Result<()> {
        let Some((setting, why)) = self.unreadable().into_iter().next() else { return Ok(()) };
        let message =
            format!("setting '{setting}', which may refer to it, cannot be read ({why}): use the version that made it");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    /// Deletes a rule that is part of no policy. Its snapshots stay until they expire.
    pub async fn delete_rule(&self, engine: &dyn Engine, name: &str) -> Result<()> {
        let (number, _) = self.rules.get(name)?;
        self.check_readable()?;
        let policies = self.policies_with(number);
        if !policies.is_empty() {
            let message =
                format!("rule '{name}' is part of {}: take it out first (ashlar policy set)", policies.join(", "));
            return Err(Error::new(ErrorKind::Busy, message));
        }
        engine.manage(vec![take::<RuleSpec>(number)]).await
    }

    /// All policies, by name.
    pub fn policies(&self) -> Vec<Policy> {
        let mut out: Vec<Policy> = self.policies.all.iter().map(|(n, p)| self.describe_policy(*n, p)).collect();
        out.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        out
    }

    /// One policy.
    pub fn policy(&self, name: &str) -> Result<Policy> {
        let (number, policy) = self.policies.get(name)?;
        Ok(self.describe_policy(number, policy))
    }

    fn describe_policy(&self, number: u32, policy: &StoredPolicy) -> Policy {
        let rules = policy.rules.iter().map(|r| self.rules.name(*r).map_or(format!("#{r}"), str::to_owned)).collect();
        let volumes = self.members.iter().filter(|m| m.policy == number).map(|m| m.volume.clone()).collect();
        let groups = self.groups.all.values().filter(|g| g.policy == number).map(|g| g.name.clone()).collect();
        Policy { spec: PolicySpec { name: policy.name.clone(), rules }, volumes, groups }
    }

    fn stored_policy(&self, spec: &PolicySpec) -> Result<StoredPolicy> {
        if spec.rules.is_empty() || spec.rules.len() > RULES_MAX {
            return Err(Error::invalid(format!("a policy has 1 to {RULES_MAX} rules, not {}", spec.rules.len())));
        }
        let mut rules = Vec::with_capacity(spec.rules.len());
        for name in &spec.rules {
            let (number, _) = self.rules.get(name)?;
            if rules.contains(&number) {
                return Err(Error::invalid(format!("rule '{name}' is named twice")));
            }
            rules.push(number);
        }
        Ok(StoredPolicy { name: spec.name.clone(), rules, changed_s: now_s() })
    }

    /// Makes a policy.
    pub async fn create_policy(&self, engine: &dyn Engine, spec: &PolicySpec) -> Result<()> {
        self.policies.check_free(&spec.name, None)?;
        let policy = self.stored_policy(spec)?;
        let groups = self.groups.all.values().map(|g| g.policy);
        let number = self.next(&self.policies, self.members.iter().map(|m| m.policy).chain(groups))?;
        engine.manage(vec![put(number, &policy)?]).await
    }

    /// Changes a policy.
    pub async fn change_policy(&self, engine: &dyn Engine, name: &str, spec: &PolicySpec) -> Result<()> {
        let (number, _) = self.policies.get(name)?;
        self.policies.check_free(&spec.name, Some(number))?;
        engine.manage(vec![put(number, &self.stored_policy(spec)?)?]).await
    }

    /// Deletes a policy that nothing has.
    pub async fn delete_policy(&self, engine: &dyn Engine, name: &str) -> Result<()> {
        let (number, policy) = self.policies.get(name)?;
        self.check_readable()?;
        let Policy { volumes, groups, .. } = self.describe_policy(number, policy);
        let users: Vec<String> =
            volumes.iter().map(|v| format!("volume {v}")).chain(groups.iter().map(|g| format!("group {g}"))).collect();
        if !users.is_empty() {
            let message = format!(
                "policy '{name}' is that of {}: take it from them first (ashlar policy unassign)",
                users.join(", ")
            );
            return Err(Error::new(ErrorKind::Busy, message));
        }
        engine.manage(vec![take::<StoredPolicy>(number)]).await
    }

    /// The number of a policy; 0 for none.
    pub(super) fn policy_number(&self, name: Option<&str>) -> Result<u32> {
        name.map_or(Ok(0), |name| self.policies.get(name).map(|(number, _)| number))
    }

    /// Gives a volume a policy, or none.
    pub async fn assign(&self, engine: &dyn Engine, volume: &str, policy: Option<&str>) -> Result<()> {
        let number = self.policy_number(policy)?;
        let member = self.members.iter().find(|m| m.volume == volume).filter(|m| m.group != 0);
        if let (Some(member), true) = (member, number != 0) {
            let group = self.group_name(member.group).unwrap_or_default();
            let message = format!(
                "volume '{volume}' is in group '{group}', which has the policy: assign it to the group (--group {group})"
            );
            return Err(Error::new(ErrorKind::Busy, message));
        }
        engine.manage(vec![Managed::Policy(volume.into(), number)]).await
    }
}
