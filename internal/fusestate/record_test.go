package fusestate

import (
	"testing"
	"unsafe"
)

func bytesOf[T any](r *T) []byte {
	return append([]byte{}, unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r))...)
}

func FuzzParse(f *testing.F) {
	file := bytesOf(&programsFileRecord{Kind: fileRecord, Len: uint32(unsafe.Sizeof(programsFileRecord{})), Fd: 3})
	device := bytesOf(&programsDeviceRecord{Kind: deviceRecord, Len: uint32(unsafe.Sizeof(programsDeviceRecord{}))})
	mapping := bytesOf(&programsMappingRecord{Kind: mappingRecord, Len: uint32(unsafe.Sizeof(programsMappingRecord{}))})
	place := bytesOf(&programsPlaceRecord{Kind: placeRecord, Len: uint32(unsafe.Sizeof(programsPlaceRecord{}))})
	busy := bytesOf(&programsTaskRecord{Kind: busyRecord, Len: uint32(unsafe.Sizeof(programsTaskRecord{}))})
	f.Add(file)
	f.Add(append(append(append(append(file, device...), mapping...), place...), busy...))
	f.Add(file[:len(file)-1])
	f.Add([]byte{1, 0, 0, 0, 8, 0, 0, 0})
	f.Add([]byte{9, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		again, err := s.parse(b)
		if err != nil {
			return
		}
		size := len(s.Files)*int(unsafe.Sizeof(programsFileRecord{})) +
			len(s.Devices)*int(unsafe.Sizeof(programsDeviceRecord{})) +
			len(s.Mappings)*int(unsafe.Sizeof(programsMappingRecord{})) +
			len(s.Places)*int(unsafe.Sizeof(programsPlaceRecord{})) +
			len(again)*int(unsafe.Sizeof(programsTaskRecord{}))
		if size != len(b) {
			t.Errorf("%d bytes were taken for %d bytes of records", len(b), size)
		}
	})
}
