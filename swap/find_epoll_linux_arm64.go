package swap

import "golang.org/x/sys/unix"

// epollCalls are the system calls that look at what is registered with an
// epoll.
var epollCalls = []int{unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2}
