"""Running programs that nobody has read: `Sandbox` starts them where the Linux kernel lets them do little."""
