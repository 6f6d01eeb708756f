package iouring
import ("testing";"fmt";"time";"golang.org/x/sys/unix";"github.com/netbackd/netbackd/internal/rawio")
func TestTmpNull(t *testing.T){
 for _, name := range []string{"/dev/null","/dev/zero","eventfd"} {
 fd,err:=unix.Open(name,unix.O_RDWR|unix.O_NONBLOCK,0)
 if err!=nil{ fd,_=unix.Eventfd(0,unix.EFD_NONBLOCK)}
 r,_:=New(64)
 r.RegisterFiles(1)
 if err:=r.SetFile(0,fd);err!=nil{t.Log(name,err);continue}
 mem:=memory(t,4096); base:=address(mem)
 r.RegisterBuffers(mem)
 done:=make([]Completion,64)
 calls:=make([]rawio.Call,64)
 for i:=range calls{calls[i]=rawio.Call{Addr:base,Len:8}}
 a,b:=time.Hour,time.Hour
 for range 200{
  s:=time.Now()
  for i:=range 64{ r.WriteFixed(0,base,8,0,uint64(i))}
  r.Submit(); r.Completions(done)
  m:=time.Now()
  rawio.All(unix.SYS_WRITE,fd,calls)
  e:=time.Now()
  a=min(a,m.Sub(s)); b=min(b,e.Sub(m))
 }
 fmt.Println(name, done[63], float64(a)/64,float64(b)/64, calls[0].Res, r.rwFlags[0])
 }
}
