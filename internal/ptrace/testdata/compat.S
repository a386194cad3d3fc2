# A 32-bit program without any library: says "ready", and pauses; with an
# argument it only ends.
.globl _start
_start:
	cmpl $1, (%esp)
	je 2f
	mov $1, %eax
	xor %ebx, %ebx
	int $0x80
2:
	mov $4, %eax
	mov $1, %ebx
	mov $text, %ecx
	mov $6, %edx
	int $0x80
1:	mov $29, %eax
	int $0x80
	jmp 1b
text:	.ascii "ready\n"
