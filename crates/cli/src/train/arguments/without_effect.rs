//! Flags that guides for diffusers' scripts print, and that there is nothing to do for here.

use clap::Args;

use crate::terminal;

/// They are taken, so that a command can be copied, and what becomes of them is said.
#[derive(Debug, Args)]
pub(crate) struct WithoutEffect {
    #[arg(long, hide = true)]
    enable_xformers_memory_efficient_attention: bool,
    #[arg(long, hide = true)]
    allow_tf32: bool,
    #[arg(long, hide = true)]
    set_grads_to_none: bool,
    #[arg(long, hide = true, value_name = "N")]
    dataloader_num_workers: Option<usize>,
}

impl WithoutEffect {
    /// Says of each flag that is given why it changes nothing.
    pub(crate) fn tell(&self) {
        let flags = [
            (
                self.enable_xformers_memory_efficient_attention,
                "--enable-xformers-memory-efficient-attention",
                "attention never stores its scores here",
            ),
            (self.allow_tf32, "--allow-tf32", "it is for GPUs"),
            (self.set_grads_to_none, "--set-grads-to-none", "gradients are never kept"),
            (
                self.dataloader_num_workers.is_some(),
                "--dataloader-num-workers",
                "pictures are read ahead on a thread of their own",
            ),
        ];
        for (_, flag, reason) in flags.iter().filter(|(is_given, ..)| *is_given) {
            terminal::note(&format!("{flag} changes nothing: {reason}"));
        }
    }
}
